"""The audit log: administration and deletions, written in the transaction of what they tell of."""

import time

from database.admin_models import AuditEvent
from database.repositories import Repositories
from services import callers


def record(repositories: Repositories, owner: str, action: str, target: str, **details: object) -> None:
    """`owner` of the target; the actor is the current caller. `details` must not hold contents or keys."""
    actor = callers.current().key_id
    event = AuditEvent(
        at=time.time(), actor=actor, owner=owner, action=action, target=target[:256], details=details or None
    )
    repositories.audit.add(event)
