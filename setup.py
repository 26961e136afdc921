"""Only what pyproject cannot say: the cffi modules and the abi3 tag of the wheel."""

from setuptools import setup

setup(
    cffi_modules=["xenpv/abi/build.py:ffibuilder", "xenpv/bench/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
