"""What the tools share: configs and overrides, and a user's mistakes told in a sentence."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from navit_backbone import backbone, tasks  # the first registers the safe reader of weights
from navit_backbone.file_writing import check_output
from navit_backbone.tasks.common.classes import override
from navit_backbone.tasks.common.divergence import DivergenceHook
from navit_backbone.tasks.common.learning_rate import follow_length, length_of
from navit_backbone.tasks.common.loaded_weights import LoadedWeightsHook
from navit_backbone.tasks.common.memory_errors import BatchMemoryError
from navit_backbone.tasks.common.pretrained import fill_from_file, fill_from_state, leaves_out
from navit_backbone.tasks.common.wording import few

_ALWAYS = (LoadedWeightsHook, DivergenceHook)  # in every config that our tools read

# What a constructor says to an argument that it does not know, or that it lacks.
_CONSTRUCTOR = re.compile(r'__init__\(\) (got an unexpected|missing \d+ required|takes )')

# Names by which a config tells itself something, and where their values are used.
_BY_NOW_COPIED = {
    'max_epochs': 'train_cfg.max_epochs',
    'train_pipeline': 'train_dataloader.dataset.pipeline',
    'jitter': 'train_dataloader.dataset.pipeline',
    'strides': 'model.neck.strides and those of the head',
    'weights': 'model.backbone.init_cfg.checkpoint',
    'norm': 'the norm_cfg of each head',
    'regions': 'model.roi_head.bbox_roi_extractor and mask_roi_extractor',
    'proposals': 'model.train_cfg.rpn_proposal and model.test_cfg.rpn',
    'steps_per_epoch': 'train_dataloader.batch_sampler.steps_per_epoch',
    'num_steps': 'train_cfg.max_epochs, which schedules follow',
}


# What a config need not hand to the runner: our tools, and frameworks, read it themselves.
_READ = (
    'data_root', 'classes', 'sync_bn', 'reduce_zero_label', 'patch_size', 'custom_imports',
    'auto_scale_lr', 'tta_model', 'tta_pipeline', 'runner_type', 'model_wrapper_cfg',
    'find_unused_parameters', 'activation_checkpointing', 'compile', 'efficient_conv_bn_eval',
)  # fmt: skip
_WHOLE = ('batch_size', 'num_workers', 'max_epochs', 'max_tokens', 'num_frames', 'val_interval')

# Numbers of a config that have a lower limit, wherever they stand in it.
_LEAST = {
    'batch_size': 1,
    'num_workers': 0,
    'max_epochs': 1,
    'max_iters': 1,
    'val_interval': 1,
    'accumulative_counts': 1,
    'lr': 0,
    'seed': 0,
}

TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation'}  # by the default_scope of their configs
OWN_TASKS = {
    'navit_backbone.tasks.video': 'video'
}  # without a framework's scope: by custom_imports


def enter_task(cfg: Config, source: Path) -> None:
    """Register what a config's task has, and make its scope the default."""
    import_module(f'navit_backbone.tasks.{task_of(cfg, source)}')
    init_default_scope(cfg.default_scope)


def task_of(cfg: Config, source: Path) -> str:
    """The folder of tasks/ that a config is of: by its scope, or by what it imports."""
    scope = cfg.get('default_scope')
    if scope in TASKS:
        return TASKS[scope]
    imports = cfg.get('custom_imports', {}).get('imports', [])
    for name in [imports] if isinstance(imports, str) else imports:
        if name in OWN_TASKS:
            return OWN_TASKS[name]
    raise ValueError(
        f'{source} is of no task known: default_scope is {scope!r}, not one of {list(TASKS)}, and '
        f'custom_imports {list(imports)} has none of {list(OWN_TASKS)}'
    )


def expanded_path(text: str) -> Path:
    """Return the path that a command line names, with `~` as the home folder.

    Shells leave `~` alone in quotes and after `=`.
    """
    return Path(os.path.expanduser(text))


def output_file(text: str) -> Path:
    """Return the path of a file to write, for argparse; refuse one that cannot be written to."""
    if not text.strip() or text.endswith('/'):
        raise argparse.ArgumentTypeError(f'{text!r} is no file name. Fix: give FOLDER/NAME')
    return _writable(expanded_path(text))


def output_folder(text: str) -> Path:
    """Return the path of a folder to write to, for argparse; refuse one that cannot be."""
    if not text.strip():
        raise argparse.ArgumentTypeError('the path is empty. Fix: give a folder; . is this one')
    return _writable(expanded_path(text), folder=True)


def _writable(path: Path, *, folder: bool = False) -> Path:
    try:
        check_output(path, folder=folder)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def set_work_dir(cfg: Config, source: Path, work_dir: Path | None) -> None:
    """Set `work_dir`: as given, else as the config has it, else work_dirs/CONFIG.

    Raises ValueError where it is no folder that can be written to.
    """
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or f'work_dirs/{source.stem}')
    try:
        check_output(Path(cfg.work_dir), folder=True)
    except ValueError as error:
        raise ValueError(f'work_dir={error}, as --work-dir DIR') from error


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, and what changes in it."""
    parser.add_argument('config', type=expanded_path, help='a file of configs/')
    add_options_argument(parser)


def add_options_argument(parser: argparse.ArgumentParser) -> None:
    """Add --cfg-options: what changes in a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Overrides,
        type=_assignment,
        default={},
        metavar='KEY=VALUE',
        help='overrides, as optim_wrapper.optimizer.lr=1e-4 or data_root=/data/mine; where the '
        'config holds a text, the value is a text, whatever its commas and digits',
    )


class OptionText(str):
    """Value of --cfg-options as typed, whose type follows from the config: `typed_options`."""


class _Overrides(argparse.Action):
    """Store each KEY=VALUE under its key; several --cfg-options add up."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = (item.split('=', 1) for item in values)
        options = {key: OptionText(text) for key, text in pairs}
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **options})


def _assignment(text: str) -> str:
    if '=' not in text.lstrip('='):
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


# Options that are paths, and texts even where the config holds None or nothing.
_PATHS = (
    'data_root', 'work_dir', 'load_from', 'checkpoint', 'ann_file', 'output_dir', 'save_dir',
    'out_dir', 'outfile_prefix',
)  # fmt: skip


# Options that are a word or a number of type float, where the config holds the word.
_TEXTS_OR_NUMBERS = ('loss_scale',)
_NUMBER = re.compile(r'\d+(\.\d*)?(e[+-]?\d+)?', re.IGNORECASE)


def typed_options(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values of --cfg-options the type that the config holds under their keys.

    - Where the config holds a text, and for paths, the value is that text: commas, digits,
      brackets and spaces stay. `None` is None, and a list needs brackets: metric=[bbox,segm].
      `loss_scale` may be 'dynamic' or a number.
    - Where it holds a list of texts, and for `classes`, the value is split at commas and each part
      stays a text; quotes keep a comma. `classes` may be the path of a .txt file instead.
    - Where it holds a number, a comma needs brackets: 1,000 and 0,5 are refused.
    - Anything else is read as Python would: numbers, None, True, lists.

    Values that are not `OptionText` stay as they are.
    """
    return {
        key: _typed(key, str(value), _held(cfg, key)) if isinstance(value, OptionText) else value
        for key, value in options.items()
    }


def _typed(option: str, text: str, held: Any) -> Any:
    key = option.split('.')[-1]
    bracketed = text[:1] + text[-1:] in ('[]', '()')
    if text == 'None':
        return None
    if key == 'classes' and text.endswith('.txt') and ',' not in text:
        return os.path.expanduser(text)
    if key == 'classes' or _is_texts(held):
        return _split_texts(text[1:-1] if bracketed else text)
    if key in _TEXTS_OR_NUMBERS and _NUMBER.fullmatch(text):
        return float(text)
    if isinstance(held, str) or (key in _PATHS and not isinstance(held, (dict, list, tuple))):
        if bracketed and key not in _PATHS:
            return _split_texts(text[1:-1])
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] in ('"', "'") else text
    _check_form(option, text, held)
    if isinstance(held, (int, float)) and ',' in text and not bracketed:
        if isinstance(held, bool):
            return text  # `_check_value` refuses it
        raise ValueError(
            f'--cfg-options {option}={text}: the config has {held}, and numbers are written '
            f'without commas, as 1000 or 0.5. Fix: for a list write {option}=[{text}]'
        )
    # mmengine takes all spaces out, of names too: one between two words is kept, beside brackets
    # and commas it is none
    kept = re.sub(r'(?<=[^\s,(\[]) +(?=[^\s,)\]])', lambda gap: gap[0].replace(' ', '\0'), text)
    return _with_spaces(DictAction._parse_iterable(kept))


def _check_form(option: str, text: str, held: Any) -> None:
    """Refuse a dict, and a list without one of its brackets: mmengine has no words for either."""
    if text.lstrip('[( ').startswith(('{', 'dict(')):
        fix = 'write it into a config'
        if isinstance(held, dict):
            fix = f'set each of its values, as {option}.{next(iter(held), "KEY")}=...'
        raise ValueError(f'--cfg-options {option}={text}: a dict cannot be given. Fix: {fix}')
    pairs = [(text.count(opening), text.count(closing)) for opening, closing in ('()', '[]')]
    is_list = text.startswith(('[', '(')) or ',' in text
    if is_list and any(opened != closed for opened, closed in pairs):
        raise ValueError(
            f'--cfg-options {option}={text}: brackets are opened {sum(p[0] for p in pairs)} times '
            f'and closed {sum(p[1] for p in pairs)} times, or by the other kind. Fix: write a list '
            f'as {option}=[1,2], in quotes where it has spaces'
        )


def _is_texts(held: Any) -> bool:
    return (
        isinstance(held, (list, tuple))
        and bool(held)
        and all(isinstance(item, str) for item in held)
    )


def _split_texts(text: str) -> list[str]:
    """Split at the commas that stand outside of quotes."""
    parts = re.findall(r"""\s*(?:'([^']*)'|"([^"]*)"|([^,]*?))\s*(?:,|$)""", text)
    texts = [single or double or plain for single, double, plain in parts]
    return texts[:-1] if texts[-1] == '' else texts  # the end matches once more


def _with_spaces(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_with_spaces(item) for item in value)
    return value.replace('\0', ' ') if isinstance(value, str) else value


def _held(cfg: Config, option: str) -> Any:
    """Return what the config holds under a key; None where it holds nothing."""
    node: Any = cfg._cfg_dict
    for key in option.split('.'):
        if isinstance(node, (list, tuple)) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return None
    return node


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check --cfg-options, merge them into the config, and expand `~` in all its paths."""
    options = typed_options(cfg, options)
    check_options(cfg, options)
    override(cfg, options)
    _expand_home(cfg._cfg_dict)


def _expand_home(node: Any) -> Any:
    """Write the home folder for the `~` at the beginning of paths, below `node` too."""
    if isinstance(node, dict):
        for key in list(node):
            node[key] = _expand_home(node[key])
    elif isinstance(node, (list, tuple)):
        return type(node)(_expand_home(item) for item in node)
    elif isinstance(node, str) and (node == '~' or re.match('~[^/]*/', node)):
        return os.path.expanduser(node)
    return node


# Options of a loader that torch refuses where no worker loads.
_OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')


def _fit_workers(cfg: Config) -> None:
    """Leave out what is of workers in every loader that has none, as with num_workers=0 alone."""
    for key, loader in cfg.items():
        if key.endswith('_dataloader') and isinstance(loader, dict):
            for option in _OF_WORKERS if not loader.get('num_workers') else ():
                loader.pop(option, None)


def usable_device(text: str) -> str:
    """Return a device that a command line names; refuse one that is not here."""
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f'{text!r} cannot be used here ({told}): leave it out for {get_device()}'
        ) from error
    return text


def read_config(path: Path, options: Mapping[str, Any]) -> Config:
    """A config with its overrides, in its scope, and with checks of what is loaded."""
    if not path.is_file():
        near = sorted(path.parent.glob('*.py')) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, [item.name for item in near], 3, 0.3)
        there = f': {path.parent} has {", ".join(close)}' if close else ': see configs/'
        raise ValueError(f'no config at {path}{there}')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        line = (error.text or '').strip()
        raise ValueError(f'{path}, line {error.lineno}: {error.msg} ({line})') from error
    except ImportError as error:
        raise ValueError(
            f'{path} needs what cannot be imported here: {error.__cause__ or error}. '
            'tools/doctor.py names what to install'
        ) from error
    except (NameError, AttributeError, LookupError, TypeError, AssertionError) as error:
        raise ValueError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
    length = length_of(cfg)
    apply_options(cfg, options)
    if 'model' in cfg:
        require_parts(cfg, path, 'model')
    _check_limits(cfg, path)
    _fit_workers(cfg)
    if not any(option.startswith('param_scheduler') for option in options):
        for change in follow_length(cfg, length):
            print(f'note: {change}, to follow max_epochs', file=sys.stderr)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if isinstance(cfg.get('model'), ConfigDict):
        fill_from_file(cfg.model)
    hooks = list(cfg.get('custom_hooks') or [])
    given = {hook['type'] for hook in hooks}
    added = [dict(type=kind.__name__) for kind in _ALWAYS if not {kind, kind.__name__} & given]
    if added:
        cfg.custom_hooks = [*hooks, *added]
    return cfg


def require_parts(cfg: Config, source: Path, *parts: str) -> None:
    """Raise ValueError where a config lacks one of these top-level keys, or it is no dict."""
    for part in parts:
        value = cfg.get(part)
        lists = part.endswith('_evaluator') and isinstance(value, list) and value
        if not (lists or isinstance(value, dict)):
            fault = f'has {part}={value!r}' if part in cfg else f'has no {part}'
            raise ValueError(
                f'{source} {fault}. Fix: {part} must be a dict of its settings, as '
                f'{part} = dict(...) in configs/'
            )


def _check_limits(cfg: Config, source: Path) -> None:
    """Raise for numbers below `_LEAST`, and for NaN, wherever they stand in the config."""
    for place in _places({key: value for key, value in cfg.items() if key in _free_keys()}):
        least = _LEAST.get(place.split('.')[-1])
        value = _held(cfg, place) if least is not None else None
        if isinstance(value, (int, float)) and not value >= least:
            raise ValueError(f'{source}: {place}={value} must be {least} or more')


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse an override whose key is nowhere in the config: it would change nothing, in silence.

    A new last key is right where it is judged (beside a `type`, by its constructor), and told
    otherwise, unless it looks like a slip of a key that is there.
    """
    for option, value in options.items():
        if way := _copied_to(cfg, option):
            raise ValueError(
                f'--cfg-options {option} would change nothing: the config has copied it to where '
                f'it is used; set {way}'
            )
        node: Any = cfg._cfg_dict
        *parents, last = option.split('.')
        for depth, key in enumerate(parents):
            node = _step(node, key, option, parents[:depth])
        if isinstance(node, dict) and last not in node and 'type' not in node:
            known = set(node) | (set() if parents else _free_keys())
            if last not in known and (not parents or _close(last, known)):
                raise ValueError(_unknown_key(option, parents, last, known))
            if last not in known:
                print(f'note: --cfg-options {option} adds {last!r} anew', file=sys.stderr)
        elif isinstance(node, (list, tuple)):
            _step(node, last, option, parents)
        if isinstance(node, dict):
            _check_value(option, node.get(last), value)


def _copied_to(cfg: Config, option: str) -> str:
    """Where a key is used whose name is of the config alone, and no part of what is run."""
    head, last = option.split('.')[0], option.split('.')[-1]
    if head in _BY_NOW_COPIED:
        return _BY_NOW_COPIED[head]
    run = _free_keys()
    if head not in cfg or head in run:
        return ''
    used = {key: value for key, value in cfg.items() if key in run}
    places = [place for place in _places(used) if place.split('.')[-1] == last]
    return few(places)


def _places(node: Any, before: str = '') -> Iterator[str]:
    """The keys of all that lies in dicts and lists, as --cfg-options takes them."""
    if isinstance(node, dict):
        items = list(node.items())
    else:
        items = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, value in items:
        yield f'{before}{key}'
        yield from _places(value, f'{before}{key}.')


def _check_value(option: str, old: Any, new: Any) -> None:
    """Refuse a word where the config has a number or a switch."""
    if isinstance(old, bool) and isinstance(new, str):
        raise ValueError(
            f'--cfg-options {option}={new}: the config has {old}, and takes True or False'
        )
    if isinstance(old, bool) or not isinstance(old, (int, float)):
        return
    whole = option.split('.')[-1] in _WHOLE
    if isinstance(new, str) or (whole and isinstance(new, float)):
        raise ValueError(
            f'--cfg-options {option}={new}: the config has {old}, and takes '
            f'{"whole numbers" if whole else "numbers"}'
        )


def _step(node: Any, key: str, option: str, parents: list[str]) -> Any:
    """What stands under `key`; None where a part is switched off, or a constructor judges it."""
    if isinstance(node, (list, tuple)) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    if isinstance(node, dict) and key in node:
        return node[key]
    names = set(node) if isinstance(node, dict) else set()
    if node is None or ('type' in names and not _close(key, names)):
        return None
    if isinstance(node, (list, tuple)):
        names = {str(i) for i in range(len(node))}
    raise ValueError(_unknown_key(option, parents, key, names))


def _close(key: str, names: set[str]) -> list[str]:
    return difflib.get_close_matches(key, sorted(names), 3, 0.75)


def _free_keys() -> set[str]:
    """What a config need not have: the runner's own keys, and those that reach every data set."""
    return {*inspect.signature(Runner.__init__).parameters, *_READ}


def _unknown_key(option: str, parents: list[str], key: str, names: set[str]) -> str:
    place = f"'{'.'.join(parents)}'" if parents else 'the config'
    close = _close(key, names)
    hint = f'did you mean {" or ".join(close)}?' if close else f'it has {", ".join(sorted(names))}'
    return f'--cfg-options {option}: {place} has no {key!r}; {hint}'


def build_runner(cfg: Config) -> Runner:
    """The runner of a config: mmengine's, or the one that `runner_type` names."""
    runner: Runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    return runner


def without_pretraining(cfg: Config, checkpoint: Path) -> None:
    """Leave out the file that training starts from: a checkpoint holds all that it tells."""
    if leaves_out(cfg.model):
        content = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
        fill_from_state(cfg.model, content.get('state_dict', content))
    backbone = cfg.model.get('backbone')
    if isinstance(backbone, ConfigDict):
        backbone.init_cfg = None


def run(
    work: Callable[[], int | None], config: Path | None = None, *, way_on: Callable[[], str] = str
) -> None:
    """Do the work of a tool; a user's mistake ends with a sentence, anything else with a traceback.

    NAVIT_TRACEBACK=1 shows the traceback of mistakes too. Ctrl-C exits with code 130, after a
    line that ends with the text of `way_on`.
    """
    # of a metric that mmdet has and nobody asked for; ours measures without
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    try:
        sys.exit(work())
    except KeyboardInterrupt:
        print(f'stopped{way_on()}', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, KeyError, TypeError, ImportError, BatchMemoryError) as error:
        told = mistake(error, config)
        if told is None or os.environ.get('NAVIT_TRACEBACK'):
            raise
        sys.exit(f'error: {told}')


def mistake(error: Exception, config: Path | None = None) -> str | None:
    """What to tell where an error is the user's to correct; None where it is a fault of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename).resolve() if frames else Path()
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, (OSError, BatchMemoryError)):
        return text
    if isinstance(error, ImportError):
        if where.name != 'vis_backend.py':
            return None
        return f'{config}: vis_backends: {error.__context__}; install it, or leave that one out'
    ours = [Path(str(part.__file__)).resolve().parent for part in (backbone, tasks)]
    ours.append(Path(__file__).resolve().parent)
    if isinstance(error, ValueError):
        if 'Original Traceback' in text:  # of a worker that loads data: the sentence stands last
            where = Path(re.findall(r'  File "(.+?)", line', text)[-1]).resolve()
            text = text.strip().splitlines()[-1].split(': ', 1)[-1]
        told = type(error).__module__.startswith('navit_backbone')
        return text if told or any(folder in where.parents for folder in ours) else None
    if 'load_weights() got' in text:
        said = text.split('() ')[1]
        return f'{config}: init_cfg {said}; it takes checkpoint, prefix, family, min_share'
    own = isinstance(error, TypeError) and any(folder in where.parents for folder in ours)
    if where.name != 'build_functions.py' and not own:
        return None
    if isinstance(error, TypeError) and not _CONSTRUCTOR.search(text):
        return None
    text = ' '.join(text.split('. Please check')[0].split())
    return f'{config}: {text}; correct this key in the config or in --cfg-options'
