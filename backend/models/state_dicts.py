# SPDX-License-Identifier: GPL-3.0-or-later
"""Released weights as they come, and networks that want exactly theirs."""

from collections.abc import Mapping

from torch import Tensor, nn

from backend.progress import UserError

WRAPPERS = ("state_dict", "module", "model")  # that training programs put around a network's weights
LGM = "lgm_big."  # VideoMV's files carry its Gaussian refiner, LGM, too
NAMED = 5  # keys that a message names


def released_state(released: Mapping) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's weights and LGM's, from a released file's contents; without prefixes.

    The weights may lie under "state_dict" or the like, beside step counts, and all their keys may begin with "module."
    or the like.
    """
    inside = next((released[name] for name in WRAPPERS if isinstance(released.get(name), Mapping)), None)
    if inside is not None:
        return released_state(inside)
    state = {key: value for key, value in released.items() if isinstance(value, Tensor)}
    prefixes = [f"{name}." for name in WRAPPERS]
    while prefix := next((one for one in prefixes if state and all(key.startswith(one) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    lgm = {key.removeprefix(LGM): value for key, value in state.items() if key.startswith(LGM)}
    return {key: value for key, value in state.items() if not key.startswith(LGM)}, lgm


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], name: str, *, assign: bool = False) -> None:
    """Load weights that must be the network's to the last key and shape.

    name: of the weights, for people; assign: take the tensors themselves, with their type, as a network on the meta
    device needs it.

    Raises:
        UserError: there are missing or extra keys, or other shapes.
    """
    expected = network.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    other = [
        f"{key} {list(state[key].shape)} for {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = {"missing": missing, "not part of it": extra, "of another shape": other}
    found = [f"{len(keys)} {problem} ({shortened(keys)})" for problem, keys in problems.items() if keys]
    if found:
        raise UserError(
            "wrong_weights",
            f"{name}: these are not the weights of this network. Of its {len(expected)} tensors and the file's "
            f"{len(state)}, {'; '.join(found)}.",
            "Check that the file is complete, and that it was made for this network: the text and the image network's "
            "weights do not fit each other.",
        )
    network.load_state_dict(state, assign=assign)


def shortened(keys: list[str]) -> str:
    """The first few, and that there are more."""
    return ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")
