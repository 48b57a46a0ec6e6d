from tests.helpers.formulas import assert_equal, random_map, random_mixer


def test_output_is_the_input():
    x = random_map(2, 3, 7, 4)
    mixer = random_mixer("identity", 3, (7, 4))
    assert_equal(mixer(x), x, 0)
    assert not list(mixer.parameters())
