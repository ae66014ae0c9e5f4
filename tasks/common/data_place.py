"""How far training has come in its data, and whether that place means the same in another run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from .dataset import SeededSamples
from .wrappers import inner_datasets


def place_of(loader: DataLoader) -> Any:
    """What keeps the place in the data: the batch sampler, the sampler below it, or None.

    It can skip what was trained on, and has a `state_dict` of the pass over the data under way.
    """
    if hasattr(loader.batch_sampler, 'skip_batches'):
        return loader.batch_sampler
    plain = type(loader.batch_sampler) is BatchSampler
    return loader.sampler if plain and hasattr(loader.sampler, 'skip_samples') else None


def sampler_state(loader: DataLoader) -> dict[str, Any] | None:
    """The state of what keeps the place."""
    place = place_of(loader)
    return None if place is None else place.state_dict()


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the sampler its pass, where mmengine's DistSamplerSeedHook does."""
    sampler = getattr(place_of(loader), 'sampler', loader.sampler)
    sampler.set_epoch(epoch)


def skip(loader: DataLoader, num_batches: int) -> None:
    """Leave out the first batches of the next iteration, and load none of them."""
    place = place_of(loader)
    if hasattr(place, 'skip_batches'):
        place.skip_batches(num_batches)
    else:
        place.skip_samples(min(num_batches * loader.batch_size, len(place)))


def pass_under_way(loop: BaseLoop) -> int:
    """Which pass over the loader this is, counted from 0."""
    if isinstance(loop, IterBasedTrainLoop):
        return int(loop.dataloader_iterator._epoch)
    return int(loop.epoch)


def facts_of_run(runner: Runner) -> dict[str, Any]:
    """What decides which samples a step sees."""
    loader = runner.train_dataloader
    return {
        'processes': get_world_size(),
        'batch size': loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None),
        'tokens a batch': getattr(loader.batch_sampler, 'max_tokens', None),
        'samples': len(loader.dataset),
        'steps in a pass over the data': len(loader),
        'seed': runner._randomness_cfg.get('seed'),  # each rank may have its own from it
    }


def changes_of_run(saved: dict[str, Any], runner: Runner) -> str:
    """In words, which facts are others than those saved; a seed only where the config gives one."""
    now = facts_of_run(runner)
    if now['seed'] is None:
        del now['seed']
    changed = [key for key in now if saved.get(key) != now[key]]
    return ', '.join(f'{key}: {saved.get(key)} (now {now[key]})' for key in changed)


def unseeded(dataset: Any) -> Iterator[Any]:
    """The data sets, alone or in wrappers, whose draws depend on what was drawn before."""
    inner = inner_datasets(dataset)
    if not inner and not isinstance(dataset, SeededSamples):
        yield dataset
    for part in inner:
        yield from unseeded(part)
