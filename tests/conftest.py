import hypothesis

# The same examples on every run and machine: a red test is a bug, never bad luck.
hypothesis.settings.register_profile(
    "minigan", derandomize=True, deadline=None, max_examples=40, database=None
)
hypothesis.settings.load_profile("minigan")


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="sim",
        choices=["cpu", "sim", "cuda"],
        help="where tests/test_devices.py runs the table of ops; sim runs those that have kernels",
    )
