from tests.helpers.image_fixtures import break_image, folder, image, shard

__all__ = ["break_image", "folder", "image", "shard"]
