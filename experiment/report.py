"""The results of a run as they are printed to stdout."""

import math
from collections.abc import Sequence

from experiment.options import title_of
from experiment.results import Result, Results, unequal_epochs
from experiment.splits import SplitRecord

# A note on a result by which its epoch was chosen, which is optimistic.
CHOSEN = 'chosen on these images'


def print_round(result: Result | None, split: SplitRecord) -> None:
    """Print a round's result.

    Args:
        result: None if no epoch had one.
        split: the names of the images of each part.
    """
    if result is None:
        print('Best test SRCC nan, PLCC nan')
        return
    epoch = result['epoch']
    if 'test' not in split:  # --train_on_all
        count = len(split['train'])
        print(f'Trained on all {count} images; the last epoch, {epoch}, is kept')
    else:
        part = ''
        notes = [f'epoch {epoch}']
        if result['chosen_on'] == 'validation':
            part = 'validation epoch: '
        elif is_chosen_on_test(result):
            notes.append(CHOSEN)
        print(f'Best {part}test {with_intervals(result, notes=notes)}')
        print(f'Last epoch: test {with_intervals(result["last_epoch"])}')
    print_on_others(result.get('test_on', {}))


def is_chosen_on_test(result: Result) -> bool:
    """Whether a round's epoch was chosen on its test images. With one epoch there is no choice."""
    return result['chosen_on'] == 'test' and result['epochs'] > 1


def print_medians(results: Results) -> None:
    """Print the medians over the rounds of a results.json, or nan if there is no round.

    Rounds without a test part have no medians but those on other databases.
    """
    median = results['median']
    rounds = list(results['rounds'].values())
    if not rounds:
        print('Testing median SRCC nan, median PLCC nan')
        return
    if not median:  # only with unequal epochs, see `gathered`
        print(f'No median: {unequal_epochs(results["rounds"])}')
        return
    of_rounds = [f'of {len(rounds)} rounds'] if len(rounds) > 1 else []
    chosen = [CHOSEN] if any(is_chosen_on_test(result) for result in rounds) else []
    if not all(math.isnan(result['SRCC']) for result in rounds):
        print(f'Testing median {with_intervals(median, "median ", of_rounds + chosen)}')
        print(f'Last epochs: median {with_intervals(median["last_epoch"], "median ")}')
    if 'pooled' in results:
        pooled = results['pooled']
        of_images = [f'{pooled["images"]} images, each tested in one round']
        print(f'All folds: {with_intervals(pooled, notes=of_images + chosen)}')
    print_on_others(median.get('test_on', {}), 'median ')


def print_on_others(results: dict[str, Result], word: str = '') -> None:
    """Print the metrics on other databases, each after `word`."""
    for name, metrics in results.items():
        count = f' ({metrics["images"]} images)' if 'images' in metrics else ''
        print(f'On {title_of(name)}{count}: {word}{with_intervals(metrics, word)}')


def with_intervals(result: Result, word: str = '', notes: Sequence[str] = ()) -> str:
    """'SRCC 0.8797 [0.831, 0.916], PLCC ... (notes)': the metrics, with 95 % intervals if known.

    Args:
        word: stands before each metric but the first.
        notes: further remarks; the reason for a missing interval is added to them.
    """
    shown = []
    for metric, form in (('SRCC', '.4f'), ('PLCC', '.4f'), ('MAE', '.4g')):
        if metric not in result:
            continue
        text = f'{metric} {result[metric]:{form}}'
        if result.get(f'{metric}_interval'):
            low, high = result[f'{metric}_interval']
            text += f' [{low:.3f}, {high:.3f}]'
        shown.append(text)
    text = f', {word}'.join(shown)

    notes = list(notes)
    if 'no_interval' in result:
        notes.append(f'no interval: {result["no_interval"]}')
    if notes:
        text += f' ({"; ".join(notes)})'
    return text
