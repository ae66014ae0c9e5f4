"""UniViTAR's row of the benchmark: that it runs, and says what it is. No timing."""

from navit_backbone.tools import benchmark
from navit_backbone.tools import benchmark_univitar as univitar
from navit_backbone.vit import Arch


def test_its_rows_run(tmp_path):
    args = benchmark.parse_args(['--smoke', '--device', 'cpu', '--data', str(tmp_path)])
    rows = benchmark.results_of('univitar', benchmark.setting_of(args), args.arch)
    assert len(rows) == 2
    for row in rows:
        assert 'no figure (smoke: ' in row.figure
        assert '1564 + 864 tokens' in row.detail  # 34 x 46, and 2 x 18 x 24


def test_the_whole_model_is_the_published_one():
    arch = Arch.of(univitar.ARCH)
    assert (arch.embed_dims, arch.num_layers) == (1024, 24)
    assert Arch.of(univitar.SMALL).mlp == arch.mlp == 'swiglu_norm'
