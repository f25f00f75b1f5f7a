from pipelines.shuffle import keyed_order


def test_orders_are_those_of_every_version_of_numpy_and_of_ours():
    assert keyed_order(8, key=(1, 2, 3)).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert keyed_order(8, key=(0, "digits", 3)).tolist() == [6, 5, 1, 0, 4, 2, 3, 7]
