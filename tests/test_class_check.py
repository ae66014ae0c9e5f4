"""Classes of a checkpoint against those of the data: numbers decide, case does not."""

from types import SimpleNamespace

import pytest
from torch import nn

from navit_backbone.tasks.common.class_check import ClassCheckHook, check_resumed, check_trained


def data(*names):
    return SimpleNamespace(metainfo=dict(classes=names), ann_file='new.json')


@pytest.mark.parametrize(
    ('names', 'first', 'number'),
    [
        (('dog', 'cat', 'ox'), 'dog', 1),
        (('dog', 'ox', 'cow'), 'dog', 1),
        (('cow', 'cat'), 'cat', 0),
    ],
)
def test_classes_of_other_numbers_are_refused(names, first, number):
    trained = ('Cat', 'dog', 'ox')
    with pytest.raises(ValueError, match=f"new.json .*'{first}' is number .* and was {number}"):
        check_resumed(trained, data(*names))
    if len(names) == len(trained):
        with pytest.raises(ValueError, match=r"class 0 is 'dog', in training it was 'Cat'"):
            check_trained(trained, data(*names))


@pytest.mark.parametrize('names', [('cat', 'dog'), ('kitten', 'dog'), ('cat', 'dog', 'ox')])
def test_other_names_of_the_same_numbers_pass(names):
    check_resumed(('Cat', 'dog'), data(*names))
    check_trained(('Cat', 'dog'), data(*names))


@pytest.mark.parametrize('names', [('dog', 'cat', 'ox'), ('Cat', 'ox', 'dog')])
def test_training_from_classes_in_another_order_warns(names):
    """Start from a checkpoint (load_from) whose head has the same classes under other numbers."""
    remark = start_from(('cat', 'dog', 'ox'), names)
    assert 'new.json has the classes' in remark
    number = names.index('dog')
    first = f"'dog' is number {number} here and was 1" if number == 0 else "'ox' is number 1 here"
    assert first in remark and 'give the data the order of the checkpoint' in remark


@pytest.mark.parametrize('names', [('CAT', 'dog', 'ox'), ('cow', 'dog', 'ox'), ('dog', 'cat')])
def test_training_from_a_checkpoint_of_other_classes_is_plain(names):
    """Case and new names move no class; a head for another number of classes is not loaded."""
    assert start_from(('cat', 'dog', 'ox'), names) == ''


def start_from(trained, names):
    """Return what the hook logs before a training on `names` that loads weights of `trained`."""
    logged = []
    runner = SimpleNamespace(
        model=nn.Identity(),
        train_dataloader=SimpleNamespace(dataset=data(*names)),
        val_loop=None,
        logger=SimpleNamespace(warning=logged.append),
        _resume=False,
    )
    hook = ClassCheckHook()
    hook.after_load_checkpoint(runner, {'meta': {'dataset_meta': {'classes': trained}}})
    hook.before_train(runner)
    return ' '.join(logged)
