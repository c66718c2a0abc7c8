"""`parley fetch`: downloads the default models into the models folder."""

import logging

from services.models.fetch import fetch_all


def main() -> None:
    from app.common import configuration  # here: the import takes a moment
    from app.common.exits import in_one_line

    logging.basicConfig(format="%(message)s")
    logging.getLogger("services.models").setLevel(logging.INFO)
    with in_one_line():
        fetch_all(configuration.read().models_dir, progress=True)


if __name__ == "__main__":
    main()
