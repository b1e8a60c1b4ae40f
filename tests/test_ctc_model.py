"""The recogniser that CTC is measured on: its clips say what their transcripts say, by whom."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from transformers import Wav2Vec2ForSequenceClassification

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import ctc_model
from ctc_model import GRID, QUICKSTART, RATE, Sentence, SentenceRenderer, quickstart

CLEAN = quickstart.Conditions((1.0, 1.0), (90.0, 90.0), 0.0, 0.0, (0.1, 0.1), (0.1, 0.1))


def utterance(word: str, voice: str = "espeak-a", take: str = "t0") -> quickstart.Utterance:
    """A second's third of noise that is the word's own."""
    generator = np.random.default_rng(sum(map(ord, word + voice + take)))
    samples = generator.uniform(-9000, 9000, RATE // 3).astype(np.int16)
    return quickstart.Utterance(word, take, voice, samples)


def place(samples: np.ndarray, clip: np.ndarray) -> tuple[int, float]:
    """Where the samples stand in the clip, and the correlation there."""
    start = int(np.argmax(correlate(clip, samples.astype(np.float32), "valid")))
    found = clip[start : start + len(samples)]
    return start, float(np.corrcoef(found, samples)[0, 1])


def test_a_clip_says_the_words_of_its_transcript_in_order() -> None:
    sentence = Sentence(tuple(utterance(word) for word in ("stop", "the", "music")))
    assert sentence.text == "stop the music"
    (clip,) = SentenceRenderer(CLEAN, 0, 1, 1).render([sentence])
    assert len(clip) % GRID == 0
    assert clip.std() == pytest.approx(1, abs=1e-4)
    places = [place(word.samples, clip) for word in sentence.words]
    assert min(correlation for _, correlation in places) > 0.99
    between = np.diff([start for start, _ in places]) - RATE // 3
    least, most = ctc_model.GAP
    assert np.all((between >= least * RATE - 2) & (between <= most * RATE + 2))


def test_clips_of_a_batch_are_equally_long_and_heard_above_noise() -> None:
    conditions = quickstart.Conditions((1.0, 1.0), (10.0, 10.0), 0.0, 0.0, (0.1, 0.1), (0.1, 0.1))
    long = Sentence(tuple(utterance(word) for word in ("one", "two", "four")))
    clips = SentenceRenderer(conditions, 0, 2, 1).render([long, Sentence((utterance("up"),))])
    assert clips.shape == (2, clips.shape[1])
    start, correlation = place(utterance("up").samples, clips[1])
    power = np.mean(clips[1, start : start + RATE // 3] ** 2)
    silence = np.mean(np.delete(clips[1], np.arange(start, start + RATE // 3)) ** 2)
    # 10 dB below speech with its pause, which is less loud than the word alone.
    assert 10 < power / silence < 25
    assert correlation > 0.9


def test_no_utterance_is_dealt_twice_and_no_clip_mixes_voices() -> None:
    words = [utterance(f"w{n}", voice) for voice in ("espeak-a", "flite-b") for n in range(12)]
    sentences = ctc_model.dealt(words, 8, seed=0)
    assert [len(sentence.words) for sentence in sentences] == [2, 2, 3, 3, 4, 4, 2, 2]
    assert [sentence.voice for sentence in sentences] == ["espeak-a", "flite-b"] * 4
    used = [(word.voice, word.word) for sentence in sentences for word in sentence.words]
    assert len(set(used)) == len(used)


def test_the_three_sets_have_no_voice_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(
        voices: Sequence[quickstart.Voice], split: str, *_: object
    ) -> list[quickstart.Utterance]:
        return [
            quickstart.Utterance(item.word, item.take, voice.name, np.zeros(1, np.int16))
            for voice in voices
            for item in quickstart.plan_voice(voice, split, 0)
        ]

    monkeypatch.setattr(quickstart, "synthesize", said)
    speech = ctc_model.speak(Path(), 0, 1)

    def speakers(words: Sequence[quickstart.Utterance]) -> set[str]:
        """Names; of eSpeak NG what a voice sounds like, whatever its accent."""
        names = {word.voice for word in words}
        return {name.split("-")[-1] if name.startswith("espeak") else name for name in names}

    sets = [speakers(words) for words in (speech.training, speech.calibration, speech.validation)]
    assert not sets[0] & sets[1]
    assert not sets[1] & sets[2]
    assert not sets[2] & sets[0]
    assert all(any(name.startswith("flite") for name in names) for names in sets)
    clips = ctc_model.dealt(speech.calibration, ctc_model.CALIBRATION_CLIPS, 0)
    assert len({clip.voice for clip in clips}) == len({w.voice for w in speech.calibration}) == 20


def test_the_encoder_starts_as_the_quickstarts() -> None:
    spotter = Wav2Vec2ForSequenceClassification.from_pretrained(QUICKSTART / "model").float().eval()
    clip = torch.from_numpy(np.random.default_rng(0).normal(size=(1, RATE))).float()
    with torch.no_grad():
        expected = spotter.wav2vec2(clip).last_hidden_state
        found = ctc_model.make_model().eval().hubert(clip).last_hidden_state
    torch.testing.assert_close(found, expected)
