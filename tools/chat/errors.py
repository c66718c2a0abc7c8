"""What a chat reports in one line."""


class ChatError(Exception):
    """The message is for the user."""


class LostConnection(ChatError):
    """The server did not answer, or stopped answering in the middle of an answer."""
