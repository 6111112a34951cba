"""The programs that write the API reference and the pictures."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
VALIDATE = """
syntax = "proto2";
package buf.validate;
import "google/protobuf/descriptor.proto";
extend google.protobuf.FieldOptions { optional FieldRules field = 1159; }
message FieldRules {
  optional bool required = 25;
  optional StringRules string = 14;
  optional RepeatedRules repeated = 18;
}
message StringRules { optional uint64 max_len = 3; optional string pattern = 6; repeated string in = 10; }
message RepeatedRules { optional uint64 max_items = 2; optional FieldRules items = 4; }
"""
SERVICE = """
syntax = "proto3";
package aivo.toy.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
// Toys.
service ToyService {
  // Lends a toy.
  rpc LendToy(LendToyRequest) returns (stream LendToyResponse) {
    option (google.api.http) = {post: "/v1/toys" body: "*"};
  }
  // Counts toys.
  rpc CountToys(LendToyRequest) returns (LendToyResponse);
}
// What to lend.
message LendToyRequest {
  // Name of the toy.
  //
  // As it is written on the toy.
  string name = 1 [(google.api.field_behavior) = REQUIRED, (buf.validate.field).string.max_len = 64];
  // Colors.
  repeated string colors = 2 [(buf.validate.field).repeated = {max_items: 3 items: {string: {in: ["red", "blue"]}}}];
  // Days.
  optional uint32 days = 3;
}
// The loan.
message LendToyResponse {
  // How it is.
  Condition condition = 1;
  // Toys by shelf.
  map<string, uint32> shelves = 2;
}
// Of a toy.
enum Condition {
  // Not known.
  CONDITION_UNSPECIFIED = 0;
}
"""


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The reference of a small contract."""
    packages = Path(sysconfig.get_path("purelib"))
    includes = [tmp_path, packages, packages / "grpc_tools" / "_proto"]
    (tmp_path / "buf" / "validate").mkdir(parents=True)
    (tmp_path / "buf" / "validate" / "validate.proto").write_text(VALIDATE)
    (tmp_path / "toy.proto").write_text(SERVICE)
    protoc = ["-m", "grpc_tools.protoc", *(f"-I{folder}" for folder in includes), "--include_imports"]
    protoc += ["--include_source_info", f"--descriptor_set_out={tmp_path}/toy.binpb", "toy.proto"]
    subprocess.run([sys.executable, *protoc], check=True)
    subprocess.run([sys.executable, DOCS / "api.py", tmp_path / "toy.binpb", tmp_path / "toy.md"], check=True)
    return (tmp_path / "toy.md").read_text()


def test_the_reference_shows_the_route_of_each_rpc(page: str) -> None:
    request = "[LendToyRequest](#aivo.toy.v1.LendToyRequest)"
    response = "[LendToyResponse](#aivo.toy.v1.LendToyResponse)"

    assert "| ToyService | [LendToy](#aivo.toy.v1.ToyService.LendToy) | `POST /v1/toys` |" in page
    assert f"{request} → a stream of {response}, `POST /v1/toys`" in page
    assert f"{request} → {response}, gRPC only" in page


def test_the_reference_shows_type_presence_limits_and_comment_of_each_field(page: str) -> None:
    assert (
        "- `name` (string, required, at most `64` characters): Name of the toy.\n\n  As it is written on the toy.\n"
        in page
    )
    assert "- `colors` (repeated string, at most `3` items, items: one of `red`, `blue`): Colors." in page
    assert "- `days` (uint32, may be absent): Days." in page
    assert "- `condition` ([Condition](#aivo.toy.v1.Condition)): How it is." in page
    assert "- `shelves` (map of string to uint32): Toys by shelf." in page
    assert "- `CONDITION_UNSPECIFIED`: Not known." in page


def draw(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    """Runs the program that draws a picture; it is in `picture.svg` then."""
    (folder / "picture.txt").write_text(text)
    command: list[str | Path] = [sys.executable, DOCS / "draw.py", folder / "picture.txt", folder / "picture.svg"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_picture_has_boxes_titles_and_arrows(tmp_path: Path) -> None:
    draw(tmp_path, "╭─────╮   ┌───────┐\n│ ours├───▶ theirs│\n╰─────╯   └───────┘\n")

    picture = (tmp_path / "picture.svg").read_text()

    assert picture.count('class="own"') == picture.count('class="other"') == 1
    assert picture.count('class="head"') == 1
    assert ">ours</text>" in picture


def test_a_box_that_is_not_closed_is_an_error(tmp_path: Path) -> None:
    done = draw(tmp_path, "╭─────╮\n│ ours│\n╰───  ╯\n")

    assert done.returncode != 0
    assert "row 1, column 1 is not closed" in done.stderr
