"""Learn a small byte-level byte-pair vocabulary in CLIP's format, which can tokenise any string."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from defect_core.data.files import write_json, write_text

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

INDUSTRIAL_WORDS = """
a an and are at background bad bag bar bare battery bearing bent big black blade blank blister blue blur board
bolt bottle bottom box bracket break bright broken brown brush bubble bump burn burr button cable cap
capacitor capsule carpet cashew casting ceramic chain chip circuit clean clip close cloth coating coil colour
color combined component connector contact contamination copper corner corrosion cover crack crease cut damage
damaged dark deep defect defective deformation delamination dent deposit dirt discoloration discolouration
disc dot drill drop dust edge end engine engraving fabric faulty fiber fibre film filter fin flake flash flat
flip fold foreign fork frame fray front fuse gap gasket gear glass glue good grain gray green grey grid groove
hair hazelnut head hole housing image in inclusion industrial ink insert inspection iron item juice label
large layer leak leather left lens light line liquid long loose macaroni machine manipulated mark material
melt mesh metal metallic middle misplaced missing mould mold nail neck new no normal nut object of off oil old
on open orange oxide paint panel paper part patch perfect photo picture piece pill pin pink pipe pit pitting
plastic plate poke polished pore porosity powder press print product purple push red resin right ring rivet
rod rope rough rubber rust scrap scratch screw seal seam sharp sheet shiny short side silver single small
smooth solder splinter split spot spring squeeze stain steel stone strand strip stripe surface swap tear
terminal texture textured the thick thin thread tile tip tooth toothbrush top torn transistor tube twist under
uneven valve view wafer warp washer water weave weld wheel white wide wire with without wood wooden worn
wrinkle wrong yarn yellow zip zipper blowhole anomaly anomalous abnormal flawless pushed bottlecap candle
chewing gum fryum breakfast pcb sks
"""


def train_vocabulary(texts: Iterable[str], merge_count: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a byte-pair encoding (Sennrich et al. 2016) from the words of some texts.

    Ties go to the alphabetically first pair, so the result depends on the texts only.

    Args:
        texts: lower-case texts, split at white space.
        merge_count: number of merges to learn. Fewer are returned when every word becomes one token before that.

    Returns:
        The vocabulary (token to id) and the merges in order. The vocabulary holds every byte, every byte at the end of
        a word, the merges and the two special tokens.
    """
    word_counts = Counter(word for text in texts for word in text.split())
    alphabet = _byte_symbols()
    words = {word: [alphabet[byte] for byte in word.encode()] for word in sorted(word_counts)}
    for symbols in words.values():
        symbols[-1] += WORD_END
    merges: list[tuple[str, str]] = []
    while len(merges) < merge_count:
        pair_counts: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in itertools.pairwise(symbols):
                pair_counts[pair] += word_counts[word]
        if not pair_counts:
            break
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        merges.append(best)
        words = {word: _merge(symbols, best) for word, symbols in words.items()}
    base = [alphabet[byte] for byte in range(256)]
    merged = [first + second for first, second in merges]
    tokens = [*base, *(symbol + WORD_END for symbol in base), *merged, START_TOKEN, END_TOKEN]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def save_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> None:
    """Write the result of `train_vocabulary` to a folder that the CLIPTokenizer of transformers loads.

    The tokenizer truncates prompts to `max_length` tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "bos_token": START_TOKEN,
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": END_TOKEN,
        "do_lower_case": True,
    }
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False) + "\n")
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    write_json(folder / "tokenizer_config.json", config, sort_keys=False, ensure_ascii=True)


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _byte_symbols() -> dict[int, str]:
    """Return GPT-2's printable symbol of every byte: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
