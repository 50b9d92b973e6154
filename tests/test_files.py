"""Files appear whole, or stay as they were."""

import os

import pytest

from mmkw.files import whole_file, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / 'note.txt'
    write_whole('Größe', path)
    assert path.read_text(encoding='utf-8') == 'Größe'
    write_whole(b'\x00\xff', str(path))
    assert path.read_bytes() == b'\x00\xff'
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_earlier_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / 'note.txt'
    write_whole('earlier', path)
    with whole_file(path) as file:
        file.write(b'la')
        file.flush()
        assert path.read_text() == 'earlier'
        file.write(b'ter')
    assert path.read_text() == 'later'


def test_an_error_while_writing_leaves_the_earlier_file_alone(tmp_path):
    path = tmp_path / 'note.txt'
    write_whole('earlier', path)
    with pytest.raises(RuntimeError, match='mine'), whole_file(path) as file:
        file.write(b'half')
        raise RuntimeError('mine')
    assert path.read_text() == 'earlier'
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='the folder .*none does not exist'):
        write_whole('', tmp_path / 'none' / 'note.txt')


def test_the_file_behind_a_link_is_replaced(tmp_path):
    path, link = tmp_path / 'file.txt', tmp_path / 'folder' / 'link.txt'
    link.parent.mkdir()
    link.symlink_to('../file.txt')
    for content in ('first', 'second'):
        write_whole(content, link)
        assert path.read_text() == content
        assert link.is_symlink()
    assert set(tmp_path.iterdir()) == {path, link.parent}


def test_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', tmp_path):
        with pytest.raises(OSError, match='not an ordinary file'):
            write_whole('', path)
    (tmp_path / 'loop').symlink_to('loop')
    with pytest.raises(OSError, match='loop'):
        write_whole('', tmp_path / 'loop')
