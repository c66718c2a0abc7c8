"""Parley through the official client: pip install openai, then python examples/python_openai.py

OPENAI_BASE_URL says where the server is, OPENAI_API_KEY is one of its PARLEY_API_KEYS, if it has any.
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)

# An answer as it is written
stream = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "Describe the sea in one sentence."}],
    max_tokens=60,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n({chunk.usage.completion_tokens} tokens)")

# A whole answer; the same seed samples the same tokens
answer = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "What is the opposite of hot?"}],
    seed=7,
    max_tokens=20,
)
print(answer.choices[0].message.content)

# Texts as vectors of length 1: their product says how close they are in meaning
texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
cat, kitten, rates = (each.embedding for each in client.embeddings.create(model="default", input=texts).data)
for text, vector in zip(texts[1:], (kitten, rates), strict=True):
    print(f"{sum(a * b for a, b in zip(cat, vector, strict=True)):.2f} {text}")

client.close()
