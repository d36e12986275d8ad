"""Weighted kNN of 10,000 queries on a bank of 50,000 features of 512: seconds, ours and faiss-cpu's flat index.

    python benchmarks/knn.py [--threads 2]

Both find the 20 nearest by cosine and vote with exp(cos / 0.07); faiss's search is followed by the vote in NumPy. The
accuracies must be equal.
"""

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import normalize

from _bench import bound, flags, in_turns, row, save
from selfsight.evaluation.features import Features
from selfsight.evaluation.knn import knn_accuracy

BANK, QUERIES, WIDTH, CLASSES, K, T = 50_000, 10_000, 512, 10, 20, 0.07


def features(n: int, seed: int) -> Features:
    """Ten classes as clouds that overlap."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=random)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    return Features(0.15 * centres[labels] + torch.randn(n, WIDTH, generator=random), labels, torch.arange(n))


def by_faiss(train: Features, test: Features) -> float:
    index = faiss.IndexFlatIP(WIDTH)
    index.add(normalize(train.x).numpy())
    cosines, found = index.search(normalize(test.x).numpy(), K)
    votes = np.zeros((len(found), CLASSES))
    np.add.at(votes, (np.arange(len(found))[:, None], train.labels.numpy()[found]), np.exp(cosines / T))
    return float((votes.argmax(1) == test.labels.numpy()).mean())


def main() -> None:
    """Measures both in turns."""
    parser = flags(__doc__, "knn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    train, test = features(BANK, 1), features(QUERIES, 2)
    mine = tuple(f._replace(x=f.x.to(given.device)) for f in (train, test))
    scores: dict[str, float] = {}

    def ours() -> int:
        scores["ours"] = knn_accuracy(*mine, k=K, temperature=T)
        return 1

    def theirs() -> int:
        scores["faiss"] = by_faiss(train, test)
        return 1

    rows = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        with threadpool_limits(threads):  # OpenBLAS, which faiss brings along, too
            faiss.omp_set_num_threads(threads)
            rates = in_turns({"ours": ours, "faiss": theirs}, rounds=given.rounds, seconds=0.1)
        seconds = {name: [1 / rate for rate in found] for name, found in rates.items()}
        what = f"kNN, {QUERIES:,} queries on {BANK:,} x {WIDTH}, {threads} thread{'s' * (threads > 1)}"
        rows.append(row(what, "s", seconds["ours"], "faiss-cpu", seconds["faiss"], target=1.0, less=True))
    rows.append(bound("kNN: difference of the accuracies", "", abs(scores["ours"] - scores["faiss"]), at_most=1e-4))
    save("knn", given, rows, accuracy=scores)


if __name__ == "__main__":
    main()
