"""The text side of a request, in the order in which it is passed through. Pure functions and values.

Asked: `prompt` (what is refused at once, the messages) with `refusals`, `sampling`, `contents` and `images` (their
parts), `structure` (response formats), `tools` and `call_grammar` (calls), `fitting` (what is too long); `asked` puts
it together, as a Job.

Heard: `channels` (pieces -> `events`), with `splitter` (the markers of `dialects`), `thinking` and `json_text`.

Told: `encode` (events -> chunks or a completion), `encode_completion` (legacy ones, asked for by `completion`),
`responses` and `response_events` (OpenAI's Responses), `output` and `stored` (what is kept of an answer), `tally` (what
it has used), `padding`.

`items` is the form in which all of it is stored: chat messages <-> items.
"""
