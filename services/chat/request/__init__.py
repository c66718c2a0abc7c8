"""A request -> a PreparedRequest. In the order of the pipeline:

`prompt` (early refusals, messages, the rendered template) with `refusals`, `sampling`, `contents` and `images`;
`structure` (response formats); `tool_selection`, `tool_check`, `render_tools` and `tool_grammar` (tools); `reasoning`;
`fitting` (truncation). `prepared` puts it together. `responses` and `completion` read the other kinds of request.
"""
