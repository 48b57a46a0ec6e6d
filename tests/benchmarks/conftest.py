from tests.helpers.image_fixtures import dark_and_light

__all__ = ["dark_and_light"]
