"""Why a model's files cannot be served; for whoever runs the server, as it names them."""


class UnusableModel(ValueError): ...
