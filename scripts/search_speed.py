"""How fast codes are searched, and what a code takes: FAISS's engines on random codes, on one thread.

    python scripts/search_speed.py --codes 60000
    python scripts/search_speed.py --codes 10000000 --engines flat hnsw ivf --keep graph.faiss

flat and ivf are the engines of tf_isvae.search, up to a million codes and beyond: all codes, and the 64 nearest of up
to 4,096 lists (fewer, if they would hold fewer than 40 codes each). hnsw is a graph, for comparison (Malkov & Yashunin,
arXiv:1603.09320; 16 links, 64 candidates). Queries are codes of the collection in which each bit differs with a
probability of 0.05. Recall: the share of the ten found that are as near as the tenth of all. Random codes have no
neighbourhoods: an approximate engine finds less among them than among images. --keep writes the graph every few
minutes; the same command goes on from there.
"""

import argparse
import os
import time
from pathlib import Path

from tf_isvae import files
from tf_isvae.commands import command_line

ENGINES = ("flat", "hnsw", "ivf")
QUERIES, NEIGHBOURS = 200, 10
CHUNK = 100_000
SAVE_AFTER_SECONDS = 240
LINKS, CANDIDATES = 16, 64  # of a code in the graph; that a search keeps in view


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("--codes", type=int, default=60_000, metavar="N", help="default 60000")
    add("--bits", type=int, default=50, metavar="N", help="of a code; default 50")
    add("--engines", nargs="+", choices=ENGINES, default=["flat", "ivf"], help="default flat ivf")
    add("--keep", type=Path, help="a file for the graph, hnsw")
    return parser


def prepare(arguments: argparse.Namespace) -> argparse.Namespace:
    from tf_isvae import checks

    checks.integer("--codes", arguments.codes, NEIGHBOURS)
    checks.integer("--bits", arguments.bits)
    if hasattr(arguments, "keep") and "hnsw" not in arguments.engines:
        raise ValueError(f"--keep is {arguments.keep}; it must be a file for the graph: add hnsw to --engines.")
    return arguments


def work(arguments: argparse.Namespace) -> None:
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(1)
    width = -(-arguments.bits // 8)
    rng = np.random.default_rng(0)
    last = np.uint8(0xFF << (8 * width - arguments.bits) & 0xFF)  # the last byte is filled up with zeros

    def random_codes(n):
        codes = rng.integers(0, 256, (n, width), dtype=np.uint8)
        codes[:, -1] &= last
        return codes

    codes = random_codes(arguments.codes)
    flips = np.packbits(rng.random((QUERIES, arguments.bits)) < 0.05, axis=1)
    queries = codes[rng.integers(0, len(codes), QUERIES)] ^ flips
    exact = faiss.IndexBinaryFlat(8 * width)
    exact.add(codes)
    farthest = exact.search(queries, NEIGHBOURS)[0][:, -1:]
    print("| engine | codes | bytes a code | to build, s | queries a second | recall@10 |\n|---|---|---|---|---|---|")
    for name in arguments.engines:
        began = time.process_time()
        engine, seconds = build(name, codes, getattr(arguments, "keep", None))
        spent = f"{seconds + time.process_time() - began:.0f}"
        began = time.process_time()
        distances, _ = engine.search(queries, NEIGHBOURS)
        rate = QUERIES / (time.process_time() - began)
        recall = (distances <= farthest).mean()
        print(
            f"| {name} | {len(codes):,} | {size(engine) / len(codes):.1f} | {spent} | {rate:,.0f} | {recall:.3f} |",
            flush=True,
        )


def build(name: str, codes, keep: Path | None) -> tuple:
    """The engine with all codes in it, and the processor seconds that earlier calls have spent on it."""
    import faiss
    import numpy as np

    from tf_isvae import search

    if name != "hnsw":
        return (search.flat if name == "flat" else search.in_lists)(codes), 0.0
    engine = faiss.IndexBinaryHNSW(8 * codes.shape[1], LINKS)
    before = 0.0
    if keep and keep.exists():
        engine = faiss.read_index_binary(str(keep))
        if engine.d != 8 * codes.shape[1] or engine.ntotal > len(codes):
            raise OSError(f"{keep} is a graph of {engine.ntotal:,} codes of {engine.d} bits: remove it")
        before = float(np.loadtxt(keep.with_suffix(".seconds")))
    engine.hnsw.efSearch = CANDIDATES
    began, saved = time.process_time(), time.monotonic()
    for i in range(engine.ntotal, len(codes), CHUNK):
        engine.add(codes[i : i + CHUNK])
        is_last = i + CHUNK >= len(codes)
        if keep and (is_last or time.monotonic() - saved > SAVE_AFTER_SECONDS):
            with files.atomic_write(keep) as temporary:
                faiss.write_index_binary(engine, os.fspath(temporary))
            np.savetxt(keep.with_suffix(".seconds"), [before + time.process_time() - began])
            saved = time.monotonic()
    return engine, before


def size(engine) -> int:
    """Bytes of the engine, as it is stored."""
    import faiss

    writer = faiss.VectorIOWriter()
    faiss.write_index_binary(engine, writer)
    return writer.data.size()


if __name__ == "__main__":
    command_line.run(make_parser, prepare, work)
