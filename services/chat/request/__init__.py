"""What is asked -> a Job. In the order in which it is passed through:

`prompt` (what is refused at once, the messages) with `refusals`, `sampling`, `contents` and `images` (their parts),
`structure` (response formats), `tools` and `call_grammar` (calls), `thinking`, `fitting` (what is too long). `asked`
puts it together. `responses` and `completion` are the other ways of asking.
"""
