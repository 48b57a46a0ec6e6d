"""Methods that timm needs beyond `forward`: features, pruning, another input size, groups of parameters."""

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from metamix.layers import GradCheckpointing, resize_to


class TimmInterface(GradCheckpointing):
    """The methods of `MetaFormer` that timm's feature extractors, optimizers and scripts call."""

    stem: Any
    pos_embed: nn.Parameter | None
    stages: Any
    norm: nn.Module
    num_features: int
    feature_info: list[dict]

    if TYPE_CHECKING:  # torch types every attribute of a module as Tensor | Module

        def __getattr__(self, name: str) -> Any: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map, unless `intermediates_only`, and the features that `feature_info` lists.

        Arguments are timm's. With `norm`, the final norm is applied to features of its width. With `stop_early`,
        the final map is the last requested feature.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; features are maps: use output_fmt='NCHW'.")
        take, last = feature_take_indices(len(self.feature_info), indices)
        units: Any = self.stages[0].blocks if self.isotropic else self.stages  # whose outputs are the features
        features = []
        x = self.embed(x)
        for i, unit in enumerate(units[: last + 1] if stop_early else units):
            x = unit(x)
            if i in take:
                features.append(self.norm(x) if norm and x.shape[1] == self.num_features else x)
        if intermediates_only:
            return features
        return (x if stop_early and last + 1 < len(units) else self.norm(x)), features

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the features at `indices` do not need, and return these indices, counted from 0.

        The norm and the head are dropped too if the last remaining feature has a different number of channels.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        if self.isotropic:
            self.stages[0].blocks = self.stages[0].blocks[: last + 1]
        else:
            self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        width = self.feature_info[-1]["num_chs"]
        if prune_norm or width != self.num_features:
            self.norm = nn.Identity()
        if prune_head or width != self.num_features:
            self.reset_classifier(0, "")
        self.num_features = self.head_hidden_size = width
        return take

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample spatial weights and position embeddings to images of a different size.

        Parameters whose shape does not change stay the same objects. For the others, make a new optimizer.

        Raises:
            ValueError: the size is too small, or a mixer's weights depend on it and its `adapt_state` is missing or
                fails. The model is then unchanged.
        """
        sizes = self.map_sizes(img_size, [stage.downsample for stage in self.stages])
        mixers = []
        for stage, size in zip(self.stages, sizes):
            for block in stage.blocks:
                old = block.mixer
                like = next(block.parameters(), torch.empty(0))  # gives device and dtype
                new = stage.make_mixer(size=size).to(like).train(old.training)
                if not hasattr(old, "adapt_state"):
                    made = shapes(new)
                    # A missing name belongs to a layer that was replaced, such as a batch norm in a detector.
                    if any(made.get(name, shape) != shape for name, shape in shapes(old).items()):
                        raise ValueError(
                            f"{type(old).__name__} has parameters or buffers of other shapes on maps of {size}: define "
                            f"its adapt_state(state), which resamples parameters saved at a different size."
                        )
                    continue
                try:
                    new.load_state_dict(new.adapt_state(old.state_dict()))
                except RuntimeError as error:
                    raise ValueError(
                        f"adapt_state of {type(old).__name__} does not resample parameters to {size}: "
                        f"{' '.join(str(error).split())}"
                    ) from error
                mixers.append((block, new))
        for block, mixer in mixers:  # after all were made, so that a failure changes nothing
            keep_parameters(block.mixer, mixer)
            block.mixer = mixer
        if self.pos_embed is not None and self.pos_embed.shape[-2:] != sizes[0]:
            self.pos_embed = nn.Parameter(resize_to(self.pos_embed.detach(), sizes[0]), self.pos_embed.requires_grad)
        update_model_input_size(self, img_size)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that group parameters by depth, for layer-wise learning rates."""
        if coarse:
            return dict(stem=r"^stem|^pos_embed", blocks=r"^stages\.(\d+)")
        return dict(
            stem=r"^stem|^pos_embed",
            blocks=[
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        )

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, in addition to all vectors."""
        return {"pos_embed"}


@torch.no_grad()
def keep_parameters(old: nn.Module, new: nn.Module) -> None:
    """Put the parameters of `old`, with the values of `new`, into `new` if shapes are equal: optimizers hold them."""
    for name, parameter in list(new.named_parameters(remove_duplicate=False)):
        kept = old.get_parameter(name)
        if kept.shape != parameter.shape:
            parameter.requires_grad_(kept.requires_grad)
            continue
        if not kept.is_meta and not torch.equal(kept, parameter):
            kept.copy_(parameter)
        module, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(module), leaf, kept)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the module's parameters and buffers, by name."""
    tensors = chain(module.state_dict().items(), module.named_buffers())  # also buffers that the state leaves out
    return {name: tensor.shape for name, tensor in tensors}
