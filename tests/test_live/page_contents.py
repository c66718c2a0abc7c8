"""Conversations with everything that the page shows, for tests of how it is shown."""

import json
from typing import Any

import requests

from tests.test_live.service import SECONDS, Service

ANSWER = r"""### What it found

The **range** of a projectile is $R = \frac{v^2}{g}\sin 2\theta$, so a throw at 45° goes furthest:

$$
R_{\max} = \frac{v^2}{g} = \frac{20^2}{9.81} \approx 40.8
$$

| angle | range | flight |
|------:|------:|-------:|
| 30° | 35.3 m | 2.0 s |
| 45° | 40.8 m | 2.9 s |
| 60° | 35.3 m | 3.5 s |

```python
from math import sin, radians

def reach(speed: float, angle: float) -> float:
    \"\"\"Metres, on flat ground.\"\"\"  # without air
    return speed**2 / 9.81 * sin(2 * radians(angle))
```

1. Measure the speed.
2. Look at [the derivation](https://example.org/throw).

> With air it is shorter, and the best angle is *below* 45°.
"""
TITLES = ("Throwing a ball", "Prefix caching", "A birthday dinner", "A letter in French")


def items() -> list[dict[str, Any]]:
    call = {"name": "calculate", "call_id": "call_1", "arguments": json.dumps({"expression": "20**2 / 9.81"})}
    return [
        {"type": "message", "role": "user", "content": "How far does a ball fly that I throw at 20 m/s?"},
        {"type": "function_call", **call},
        {"type": "function_call_output", "call_id": "call_1", "output": "40.77"},
        {"type": "message", "role": "assistant", "content": ANSWER.replace('\\"', '"')},
        {"type": "message", "role": "user", "content": "And at 60°?"},
    ]


def create(service: Service, key: str | None = None) -> str:
    """Several conversations; the id of the first, which has items of all kinds."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    made = []
    for title in reversed(TITLES):
        body = {"title": title, "items": items() if title == TITLES[0] else []}
        answer = requests.post(f"{service.url}/v1/conversations", json=body, headers=headers, timeout=SECONDS)
        assert answer.ok, answer.text
        made.append(answer.json()["id"])
    return str(made[-1])
