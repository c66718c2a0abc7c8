pytest_plugins = ("tests.databases", "tests.apps")
