"""Two ways beyond the trained length, against each written out: a window that slides and is scaled anew, as AutoTimes
rolls out, and a sequence that goes on, scaled once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, GPT2Config, LlamaConfig

from tests.helpers import backbone_inputs, diffusion, perturb, series
from tests.test_convert_autotimes import Method, assert_near, mlp
from tests.test_forecasting import QUANTILE, make, waves
from tests.test_text_states import WIDTH, save_language_model
from tests.test_timestamps import START, marks
from unimodal_ar import UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration, cli
from unimodal_ar.adapters import Series, TimeSeriesAdapter
from unimodal_ar.convert.autotimes import convert_autotimes
from unimodal_ar.forecasting import Forecaster

PATCH, LOOKBACK, EPS = 4, 20, 1e-5
SMALL: dict[str, Any] = dict(vocab_size=8, bos_token_id=0, eos_token_id=0)
BODIES: dict[str, Any] = {
    "llama": LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **SMALL),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=12, **SMALL),
}


def frozen(body: str, patches: int = LOOKBACK // PATCH + 1, **more: Any) -> Forecaster:
    """A model as AutoTimes', trained (as it were) on `patches`."""
    torch.manual_seed(0)
    modality = series(dim=PATCH, grid=(patches, 1, 1), start="none", **more)
    model = UnimodalARForGeneration.from_backbone(AutoModel.from_config(BODIES[body]), {"series": modality}, True)
    perturb(model, 0.1)
    return Forecaster(model, TimeSeriesAdapter(PATCH, LOOKBACK, eps=EPS))


class WrittenOut:
    """The method without any part of ours but the weights: no cache, and all of the sequence for every segment."""

    def __init__(self, model: Any) -> None:
        self.body, self.encoder, self.decoder = (
            model.backbone.model,
            model.embeddings["series"].value,
            model.heads["series"].proj,
        )

    def following(self, segments: Tensor) -> Tensor:
        """[B, n, PATCH] -> [B, PATCH], scaled."""
        return self.decoder(self.body(inputs_embeds=self.encoder(segments), use_cache=False)[0][:, -1])

    @torch.no_grad()
    def window(self, x: Tensor, steps: int) -> Tensor:
        drawn = []
        for _ in range(steps):
            mean, deviation = scaling(x)
            after = self.following(((x - mean) / deviation).unflatten(1, (-1, PATCH))) * deviation + mean
            x = torch.cat([x[:, PATCH:], after], 1)
            drawn.append(after)
        return torch.cat(drawn, 1)

    @torch.no_grad()
    def cache(self, x: Tensor, steps: int) -> Tensor:
        mean, deviation = scaling(x)
        segments = ((x - mean) / deviation).unflatten(1, (-1, PATCH))
        for _ in range(steps):
            segments = torch.cat([segments, self.following(segments)[:, None]], 1)
        return segments[:, -steps:].flatten(1) * deviation + mean


def scaling(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()


def past(batch: int = 3) -> np.ndarray:
    return np.stack(waves(*[LOOKBACK] * batch)) * np.arange(1, batch + 1)[:, None]


@pytest.mark.parametrize("body", BODIES)
def test_each_way_is_what_it_is_written_out(body: str) -> None:
    """Both from one model, over a horizon that is no multiple of a segment; the same up to the first segment only."""
    forecaster, x = frozen(body), past()
    written = WrittenOut(forecaster.model)
    drawn = {way: forecaster.predict(x, 26, roll_out=way).mean for way in ("window", "cache")}
    for way, found in drawn.items():
        expected = getattr(written, way)(torch.from_numpy(x).float(), 7)[:, :26]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), err_msg=way)
    assert np.array_equal(forecaster.predict(x, 26).mean, drawn["window"])
    apart = np.abs(drawn["window"] - drawn["cache"])
    assert apart[:, :PATCH].max() < 1e-4 and apart[:, PATCH:].max() > 1e-2


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("head", [QUANTILE, {"kind": "regression"}], ids=lambda head: head["kind"])
def test_the_cache_goes_on_as_if_the_grid_were_as_long(head: dict[str, Any], block: int) -> None:
    """Sample paths, unequal series, gaps and covariates too; for every series alone what it is among others."""
    items = [
        Series(wave, str(n), known=np.sin(np.arange(len(wave) + 21.0))[:, None], past=wave[:, None] ** 2)
        for n, wave in enumerate(waves(3, 16, 40))
    ]
    items[2].values[-9:-3] = np.nan
    adapter: dict[str, Any] = dict(known_covariates=1, past_covariates=1, past_lag=block)
    short, long = (make(head, block, patches, **adapter) for patches in (6, 10))
    drawn = short.predict(items, 21, num_samples=3, roll_out="cache").samples
    assert np.array_equal(drawn, long.predict(items, 21, num_samples=3).samples)
    assert not np.allclose(drawn, short.predict(items, 21, num_samples=3).samples)
    alone = short.predict(items, 21, num_samples=3, roll_out="cache", batch_size=1).samples
    np.testing.assert_allclose(drawn, alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_timestamps_go_on_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoTimes with its timestamps, written out with one scaling for the whole roll-out."""
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(5)
    folder, steps = save_language_model(tmp_path / "llm", "llama"), 4
    body = AutoModel.from_pretrained(folder).eval()
    written = Method(body, mlp(PATCH, WIDTH, 0), mlp(WIDTH, PATCH, 0), 0.7)
    converted = convert_autotimes(written.weights(), backbone=str(folder), seq_len=LOOKBACK, timestamps=True)
    forecaster = Forecaster(converted[0], cast(TimeSeriesAdapter, converted[1][0]))
    starts = [START, START + pd.Timedelta(days=100, hours=3)]
    mixed = torch.stack([marks(body, folder, start.to_pydatetime(), LOOKBACK // PATCH + steps) for start in starts])
    x = torch.from_numpy(past(2)).float()
    mean, deviation = scaling(x)
    segments = ((x - mean) / deviation).unflatten(1, (-1, PATCH))
    for _ in range(steps):
        embedded, mark = written.encoder(segments), mixed[:, : segments.shape[1]]
        embedded = embedded / embedded.norm(dim=-1, keepdim=True) + 0.7 * mark / mark.norm(dim=-1, keepdim=True)
        hidden = body(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1:]
        segments = torch.cat([segments, written.decoder(hidden)], 1)
    expected = (segments[:, -steps:].flatten(1) * deviation + mean)[:, :14]
    items = [Series(row, start=start, freq="h") for row, start in zip(past(2), starts, strict=True)]
    assert_near(torch.from_numpy(forecaster.predict(items, 14, roll_out="cache").mean), expected)


def test_what_a_longer_grid_was_trained_on_is_drawn_over_the_cache_either_way() -> None:
    forecaster = frozen("llama", patches=12)
    window, cache = (forecaster.predict(past(), 26, roll_out=way).mean for way in ("window", "cache"))
    assert np.array_equal(window, cache)


def test_how_much_each_way_computes() -> None:
    """Segments that go through the body, for a lookback of 5 and a horizon of 7: the window anew for each, or each once
    (but the last, after which nothing comes)."""
    forecaster, computed = frozen("llama"), {}
    for way in ("window", "cache"):
        with backbone_inputs(forecaster.model) as inputs:
            forecaster.predict(past(), 28, roll_out=way)
        computed[way] = sum(each.embeds.shape[1] for each in inputs)
    assert computed == {"window": 7 * 5, "cache": 5 + 6}


def test_learned_positions_end_somewhere() -> None:
    """GPT-2's here at 12, of which the last segment takes none: 13 patches."""
    forecaster = frozen("gpt2")
    assert forecaster.predict(past(), 32, roll_out="cache").mean.shape == (3, 32)
    with pytest.raises(
        ValueError, match=r"roll_out is 'cache' with a horizon of 33 steps, a sequence of 14 patches; .* end at 13"
    ):
        forecaster.predict(past(), 33, roll_out="cache")
    assert forecaster.predict(past(), 33).mean.shape == (3, 33)
    noisy = frozen("gpt2", **diffusion("gaussian"))
    with pytest.raises(ValueError, match="of 13 patches; the learned positions of this model end at 12"):
        noisy.predict(past(), 32, roll_out="cache")
    learned = {"series": series(dim=PATCH, absolute_positions=True)}
    body = UnimodalARDecoderConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=body, modalities=learned))
    bound = Forecaster(model, TimeSeriesAdapter(PATCH, LOOKBACK))
    assert bound.predict(past(), 4, roll_out="cache").mean.shape == (3, 4)
    with pytest.raises(ValueError, match="of 7 patches; the learned positions of this model end at 6, so it must be"):
        bound.predict(past(), 5, roll_out="cache")


def test_another_way_is_refused() -> None:
    with pytest.raises(ValueError, match="roll_out is 'slide'; it must be 'window' or 'cache'"):
        frozen("llama").predict(past(), 4, roll_out="slide")


def test_the_command_line_takes_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecaster = frozen("gpt2")
    forecaster.save_pretrained(tmp_path / "model")
    pd.DataFrame({"a": past(1)[0]}).to_csv(tmp_path / "in.csv", index=False)
    words = ["forecast", str(tmp_path / "in.csv"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "o.csv")]
    for way, more in (("window", []), ("cache", ["--roll-out", "cache"])):
        assert cli.main([*words, "--horizon", "20", *more]) == 0
        found = pd.read_csv(tmp_path / "o.csv")["mean"]
        np.testing.assert_allclose(found, forecaster.predict(past(1), 20, roll_out=way).mean[0], rtol=1e-5)
    capsys.readouterr()
    assert cli.main([*words, "--horizon", "40", "--roll-out", "cache"]) == 2
    assert "--roll-out is 'cache' with a horizon of 40 steps" in capsys.readouterr().err
