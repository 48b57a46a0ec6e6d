"""Provide the token mixers. Each mixer is one class in one file, from one paper. `registry.py` states the contract."""

from .registry import MixerOption, create_mixer, list_mixers, mixer_options, register_mixer

# Importing a mixer's file registers it; the order here is the order of `list_mixers`.
from .identity import Identity  # isort: skip
from .pooling import Pooling  # isort: skip
from .raft import Raft  # isort: skip
from .maxim import Maxim  # isort: skip
from .wavemix import WaveMix  # isort: skip
from .nin import Nin  # isort: skip
from .minattn import MinAttn  # isort: skip

__all__ = [
    "Identity", "Maxim", "MinAttn", "MixerOption", "Nin", "Pooling", "Raft", "WaveMix",
    "create_mixer", "list_mixers", "mixer_options", "register_mixer",
]  # fmt: skip
