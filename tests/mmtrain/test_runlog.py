import json

from mmtrain.runlog import Agreement, read_agreement


def test_agreement_is_the_mean_of_what_was_measured(tmp_path):
    path = tmp_path / "gradients.jsonl"
    lines = [
        {"step": 5, "tasks": ["a", "b"], "cosines": [[1.0, None], [None, None]]},
        {"step": 10, "tasks": ["a", "b"], "cosines": [[1.0, 0.5], [0.5, 1.0]]},
        {"step": 15, "tasks": ["a", "b"], "cosines": [[1.0, -0.1], [-0.1, 1.0]]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "ta')
    assert read_agreement(path) == Agreement(("a", "b"), [[1.0, 0.2], [0.2, 1.0]])


def test_a_run_without_samples_has_no_agreement(tmp_path):
    assert read_agreement(tmp_path / "gradients.jsonl") == Agreement()
