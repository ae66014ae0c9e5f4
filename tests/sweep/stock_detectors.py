"""Take a step with every stock detector of mmdet on the packed backbone.

    python tests/sweep/stock_detectors.py --out work_dirs/sweep.json [--only PATTERN] [--limit N]

All configs of mmdet with a ResNet or a Swin get the change of docs/adopt.md, at tiny depth. Each
model is built, trained for one step on two generated pictures and asked for a prediction, in a
process of its own. Configs that come to the same model (they differ in schedule, data or the stock
backbone) share one run. Where a model fails, the stock one is tried the same way, since not all of
mmdet works everywhere. What was done stands in --out, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as pytest has it

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from sweep.one_step import Pictures, one_step
from sweep.stock_configs import STOCK, adopt, paths, pictures, read, shrink

Result = dict[str, Any]


class Record:
    """The file of results: what each config comes to, and what came of each model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = json.loads(path.read_text()) if path.is_file() else {}
        self.configs: dict[str, dict[str, str]] = data.get('configs', {})
        self.models: dict[str, Result] = data.get('models', {})

    def save(self) -> None:
        data = dict(date=str(date.today()), configs=self.configs, models=self.models)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix('.writing')
        aside.write_text(json.dumps(data, indent=1))
        os.replace(aside, self.path)

    def forget_failures(self) -> None:
        self.models = {key: result for key, result in self.models.items() if result['passed']}

    def result(self, path: str) -> Result | None:
        return self.models.get(self.configs[path].get('model', ''))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='the file of results')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="as 'fcos/*' or '*dino*'")
    parser.add_argument('--limit', type=int, metavar='N', help='run at most N models now')
    parser.add_argument('--retry-failed', action='store_true')
    parser.add_argument('--timeout', type=float, default=300, help='seconds for one model')
    args = parser.parse_args()
    os.chdir(STOCK.parent)  # where teachers' configs are looked for
    record = Record(args.out.absolute())
    if args.retry_failed:
        record.forget_failures()
    chosen = [path for path in paths() if fnmatch.fnmatch(path, args.only)]
    print(f'reading {len(chosen)} configs')
    todo = {key: work for key, *work in distinct(chosen, record) if key not in record.models}
    sweep(dict(list(todo.items())[: args.limit]), record, seconds=args.timeout)
    print(report(record, chosen))


def distinct(
    chosen: list[str], record: Record
) -> Iterator[tuple[str, str, ConfigDict, ConfigDict, Pictures]]:
    """Each model once: its key, its first config, itself, the stock one, and what it learns."""
    seen = set()
    for path in chosen:
        family = dict(family=path.split('/')[0])
        try:
            cfg = read(path)
        except ValueError as error:
            record.configs[path] = dict(family, left_out=str(error))
            continue
        model, wanted = shrink(adopt(path, cfg)), pictures(cfg)
        text = json.dumps([model, asdict(wanted)], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        record.configs[path] = dict(family, detector=cfg.model.type, model=key)
        if key not in seen:
            seen.add(key)
            yield key, path, model, shrink(cfg.model), wanted


def sweep(todo: dict[str, list], record: Record, *, seconds: float) -> None:
    """Run what is left to do, and write down each result at once."""
    start = time.monotonic()
    for done, (key, (path, model, stock, wanted)) in enumerate(todo.items(), start=1):
        result = in_a_process(model, wanted, seconds=seconds)
        if not result['passed']:
            result['stock'] = in_a_process(stock, wanted, seconds=seconds)
        record.models[key] = result
        record.save()
        left = (time.monotonic() - start) / done * (len(todo) - done)
        told = 'passed' if result['passed'] else f'failed: {result["reason"]}'
        print(f'[{done}/{len(todo)}, {left / 60:.0f} min left] {path} {told}', flush=True)
    record.save()


def in_a_process(model: ConfigDict, wanted: Pictures, *, seconds: float) -> Result:
    """What comes of a model in a fork of this process; a crash or a hang is a result too."""
    start = time.monotonic()
    fork = multiprocessing.get_context('fork')
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_try, args=(sender, model, wanted))
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(seconds) else _failure(f'over {seconds:.0f} s')
    except EOFError:
        process.join()
        result = _failure(f'the process ended with {process.exitcode}')
    finally:
        process.kill()
        process.join()
    return dict(result, seconds=round(time.monotonic() - start, 1))


def _try(sender: Connection, model: ConfigDict, wanted: Pictures) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    init_default_scope('mmdet')
    try:
        one_step(model, wanted)
        result = dict(passed=True)
    except Exception as error:  # whatever it is, it is what the sweep is there to find
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = '/'.join(Path(frame.filename).parts[-3:])
        text = ' '.join(str(error).split())[:200]
        result = _failure(f'{type(error).__name__}: {text}', f'{place}:{frame.lineno}')
    sender.send(result)


def _failure(reason: str, place: str = '') -> Result:
    return dict(passed=False, reason=reason, place=place)


def report(record: Record, chosen: list[str]) -> str:
    """The share that passes, by family; why the rest does not; what was left out."""
    results = {path: record.result(path) for path in chosen if 'model' in record.configs[path]}
    done = {path: result for path, result in results.items() if result}
    passed = [path for path, result in done.items() if result['passed']]
    models = {record.configs[path]['model'] for path in done}
    lines = ['', f'{"family":<24}{"configs":>8}{"passed":>8}']
    families = Counter(record.configs[path]['family'] for path in done)
    good = Counter(record.configs[path]['family'] for path in passed)
    lines += [f'{name:<24}{count:>8}{good[name]:>8}' for name, count in families.items()]
    lines += ['', 'Failed:', *_grouped({p: _why(r) for p, r in done.items() if not r['passed']})]
    left = {p: record.configs[p]['left_out'] for p in chosen if p not in results}
    lines += ['', f'Left out, {len(left)}:', *_grouped(left, names=3)]
    share = len(passed) / max(len(done), 1)
    lines += ['', f'{len(passed)} of {len(done)} configs pass, {share:.1%} ({len(models)} models)']
    if len(done) < len(results):
        lines.append(f'{len(results) - len(done)} configs are still to be run')
    return '\n'.join(lines)


def _why(result: Result) -> str:
    stock = result['stock']
    if stock['passed']:
        return f'{result["reason"]} ({result["place"]}); the stock model passes'
    same = (
        'the stock model fails so too'
        if stock['reason'] == result['reason']
        else (f'the stock model fails: {stock["reason"]}')
    )
    return f'{result["reason"]} ({result["place"]}); {same}'


def _grouped(reasons: dict[str, str], names: int = 6) -> list[str]:
    groups = defaultdict(list)
    for path, reason in reasons.items():
        groups[reason].append(path)
    lines = []
    for reason, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        more = ' ...' if len(members) > names else ''
        lines.append(f'{len(members):>4} {reason}: {", ".join(members[:names])}{more}')
    return lines


if __name__ == '__main__':
    main()
