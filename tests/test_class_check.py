"""Classes of a checkpoint against those of the data: numbers decide, case does not."""

from types import SimpleNamespace

import pytest

from navit_backbone.tasks.common.class_check import check_resumed, check_trained


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
