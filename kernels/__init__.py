"""The kernels' contract and the choice of who runs them; see README.md beside this file."""
