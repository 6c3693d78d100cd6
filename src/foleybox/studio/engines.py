"""Text files with which game engines import a pack: Godot, Unity, Wwise, Unreal.

A pack has one folder of WAV files for each label. All paths are relative, so that a pack can be put anywhere in a
project. The formats are those of the engines' manuals; no engine needs to be installed.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Engine = Literal["godot", "unity", "wwise", "unreal", "none"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def engine_files(engine: Engine, sets: Mapping[str, Sequence[str]], loops: frozenset[str]) -> dict[str, str]:
    """Return the files for an engine: text by name relative to the pack.

    `sets` gives the WAV names by folder; `loops` are the folders whose sounds are loops.
    """
    match engine:
        case "godot":
            return {f"{folder}/{folder}.tres": godot(names) for folder, names in sets.items()} | {"README.txt": GODOT}
        case "unity":
            return {"FoleyboxPlayer.cs": UNITY_PLAYER, "README.txt": UNITY}
        case "wwise":
            return {"wwise_import.tsv": wwise(sets, loops), "README.txt": WWISE}
        case "unreal":
            return {"import_to_unreal.py": unreal(sets, loops), "README.txt": UNREAL}
        case "none":
            return {}


def godot(names: Sequence[str]) -> str:
    """Return an AudioStreamRandomizer (Godot 4) of the sounds in its folder, which never repeats one immediately."""
    lines = [f'[gd_resource type="AudioStreamRandomizer" load_steps={len(names) + 1} format=3]', ""]
    lines += [f'[ext_resource type="AudioStream" path="{name}" id="{number}"]' for number, name in enumerate(names, 1)]
    lines += ["", "[resource]", "playback_mode = 0", f"streams_count = {len(names)}"]
    for index in range(len(names)):
        lines += [f'stream_{index}/stream = ExtResource("{index + 1}")', f"stream_{index}/weight = 1.0"]
    return "\n".join(lines) + "\n"


def wwise(sets: Mapping[str, Sequence[str]], loops: frozenset[str]) -> str:
    """Return a tab-delimited import file: a Random Container for each folder, loops set to loop."""
    rows = [("Audio File", "Object Path", "Property[IsLoopingEnabled]")]
    for folder, names in sets.items():
        for name in names:
            path = f"<Random Container>{folder}\\<Sound SFX>{name.removesuffix('.wav')}"
            rows.append((f"{folder}\\{name}", path, "true" if folder in loops else "false"))
    return "".join("\t".join(row) + "\n" for row in rows)


def unreal(sets: Mapping[str, Sequence[str]], loops: frozenset[str]) -> str:
    """Return a script for Unreal's Python that imports the sounds as Sound Waves, loops set to loop."""
    sounds = {folder: list(names) for folder, names in sets.items()}
    return f"{UNREAL_HEAD}\nSOUNDS = {sounds!r}\nLOOPING = {sorted(loops)!r}\n{UNREAL_TAIL}"


GODOT = """Godot 4: copy this folder into your project.

Each folder holds a <folder>.tres, an AudioStreamRandomizer of all its sounds. Drag it onto the Stream of an
AudioStreamPlayer, 2D or 3D; every play() picks another sound, never the same twice in a row. Its random pitch and
volume are off, since the sounds differ already. Loops contain their loop points (Loop Mode: Detect from WAV).
"""

UNITY = """Unity: copy this folder into Assets.

With Unity 2023.2 or newer: Create > Audio > Audio Random Container, and drag all sounds of a folder into its list; set
Avoid Repeating to 1 or more. With any version: put FoleyboxPlayer on an object, select all sounds of a folder and drag
them onto its Clips; Play() picks a sound that is none of the last few. For loops tick Loop on the Audio Source; Play()
then replaces the sound that plays.
"""

UNITY_PLAYER = """using System.Collections.Generic;
using UnityEngine;

/// <summary>Plays a random one of its clips, none of the last few.</summary>
[RequireComponent(typeof(AudioSource))]
public class FoleyboxPlayer : MonoBehaviour
{
    [SerializeField] AudioClip[] clips = new AudioClip[0];
    [SerializeField, Min(0)] int noRepeat = 3;

    readonly Queue<int> recent = new Queue<int>();
    AudioSource source;

    void Awake()
    {
        source = GetComponent<AudioSource>();
    }

    public void Play()
    {
        if (clips.Length == 0) return;
        int kept = Mathf.Min(noRepeat, clips.Length - 1);
        while (recent.Count > kept) recent.Dequeue();
        int pick = Random.Range(0, clips.Length - recent.Count);
        for (int i = 0; i < clips.Length; i++)
        {
            if (recent.Contains(i)) continue;
            if (pick-- > 0) continue;
            recent.Enqueue(i);
            if (source.loop)
            {
                source.clip = clips[i];
                source.Play();
            }
            else
            {
                source.PlayOneShot(clips[i]);
            }
            return;
        }
    }
}
"""

WWISE = """Wwise: Project > Import Audio Files > Import Tab Delimited File, and choose wwise_import.tsv.

It creates a Random Container for each folder below the object that you import to; loops are set to loop. The paths in
the file are relative to it: do not move it out of the pack.
"""

UNREAL = """Unreal Engine 5: enable the Python Editor Script Plugin, then Tools > Execute Python Script, and choose
import_to_unreal.py.

It imports each folder to /Game/Foleybox/<folder> as Sound Waves; loops are set to loop. For random playback, select the
waves of a folder and create a Sound Cue with a Random node, or a MetaSound with an array of waves.
"""

UNREAL_HEAD = '''"""Imports this pack into the open project: Tools > Execute Python Script."""

import os

import unreal
'''

UNREAL_TAIL = """
here = os.path.dirname(os.path.abspath(__file__))
tasks = []
for folder, names in SOUNDS.items():
    for name in names:
        task = unreal.AssetImportTask()
        task.filename = os.path.join(here, folder, name)
        task.destination_path = "/Game/Foleybox/" + folder
        task.automated = True
        task.replace_existing = True
        task.save = True
        tasks.append((folder, task))
unreal.AssetToolsHelpers.get_asset_tools().import_asset_tasks([task for _, task in tasks])
for folder, task in tasks:
    for path in task.imported_object_paths if folder in LOOPING else []:
        wave = unreal.load_asset(path)
        wave.set_editor_property("looping", True)
        unreal.EditorAssetLibrary.save_loaded_asset(wave)
"""
