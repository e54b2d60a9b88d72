"""Make a small byte-pair vocabulary in CLIP's format, so that any string can be tokenised."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
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


def train_vocabulary(texts: Iterable[str], merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair encoding (Sennrich et al. 2016) on the words of some texts, each word counted once a text.

    Args:
        texts: lower case; split at white space.
        merges: number of merges wanted; fewer come back when every word is whole before that.

    Returns:
        Vocabulary (every byte, every byte at a word's end, the merges, the two special tokens) and the merges in
        order. Ties go to the alphabetically first pair, so that the result depends on nothing else.
    """
    counts = Counter(word for text in texts for word in text.split())
    alphabet = _byte_symbols()
    words = {word: [alphabet[byte] for byte in word.encode()] for word in sorted(counts)}
    for symbols in words.values():
        symbols[-1] += WORD_END
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        words = {word: _merge(symbols, best) for word, symbols in words.items()}
    base = [alphabet[byte] for byte in range(256)]
    tokens = [*base, *(symbol + WORD_END for symbol in base), *dict.fromkeys(a + b for a, b in learned), START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, learned


def save_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int) -> None:
    """Write a folder that transformers' CLIPTokenizer loads; prompts are cut to `length` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
    }
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]))
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
