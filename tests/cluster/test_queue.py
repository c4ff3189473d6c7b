"""The queue of embeddings, by hand; that a run resumes with it is among tests/methods."""

import torch

from dcl.cluster.queue import Queue


def push(queue, *numbers):
    """Two views of a batch: the numbers, and their negatives."""
    queue.push(torch.tensor([numbers, [-n for n in numbers]], dtype=torch.float32)[:, :, None])


def rows(queue):
    return queue.rows[:, :, 0].tolist()


def test_first_in_first_out_newest_first_each_view_by_itself():
    queue = Queue(2, 5, 1)
    push(queue, 1, 2)
    assert rows(queue)[0] == [1, 2, 0, 0, 0] and not queue.full
    push(queue, 3, 4)
    push(queue, 5, 6)
    assert rows(queue) == [[5, 6, 3, 4, 1], [-5, -6, -3, -4, -1]] and queue.full


def test_it_goes_on_from_its_state():
    queue, copy = Queue(2, 3, 1), Queue(2, 3, 1)
    push(queue, 1, 2)
    copy.load_state_dict(queue.state_dict())
    for one in (queue, copy):
        assert not one.full
        push(one, 3, 4)
        assert rows(one)[0] == [3, 4, 1] and one.full and one.filled == 4


def test_what_is_in_it_has_no_gradient_and_none_is_no_queue():
    queue, none = Queue(1, 2, 1), Queue(1, 0, 1)
    z = torch.ones(1, 2, 1, requires_grad=True)
    for one in (queue, none):
        one.push(2 * z)
        assert not one.rows.requires_grad
    assert none.rows.shape == (1, 0, 1) and not none.full and not list(queue.parameters())


def test_it_may_begin_with_random_directions():
    torch.manual_seed(0)
    queue = Queue(1, 50, 3, random=True)
    torch.testing.assert_close(queue.rows.norm(dim=2), torch.ones(1, 50))
    assert queue.rows.mean((0, 1)).abs().max() < 0.3 and not queue.full  # all over the sphere
