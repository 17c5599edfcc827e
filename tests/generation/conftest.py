from tests.helpers.quick import compiled_quickly

__all__ = ["compiled_quickly"]
