"""A conversation that goes on after a restart: python examples/remembers.py, then restart the server, then again with
the id that was printed.

OPENAI_BASE_URL says where the server is, OPENAI_API_KEY is one of its PARLEY_API_KEYS, if it has any.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)

if len(sys.argv) == 1:
    conversation = client.conversations.create()
    client.responses.create(input="I am 34 years old.", conversation=conversation.id, max_output_tokens=16)
    print(conversation.id)
else:
    answer = client.responses.create(
        input="How old am I?", conversation=sys.argv[1], temperature=0, max_output_tokens=24
    )
    print(answer.output_text)

client.close()
