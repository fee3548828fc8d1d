#!/usr/bin/env python3
"""lint.py - what the compiler does not say about the tree. One check a function; each gives lines "file:line: what".

usage: lint.py SOURCE-DIRECTORY CC CHECK [CFLAGS...]        exit code 1 if the check finds something"""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

FOLDERS = ['base', 'core', 'group', 'vm', 'disk', 'net', 'store', 'agent', 'cli']   # a folder includes only those before it, and its own
FUNCTION_LINES_MAX = 80
ROOT, CC, CFLAGS = '.', 'cc', []


def files(folder, *endings):
    for path, folders, names in os.walk(os.path.join(ROOT, folder)):
        folders.sort()
        for name in sorted(names):
            if name.endswith(endings):
                yield os.path.relpath(os.path.join(path, name), ROOT)


def lines(file):
    with open(os.path.join(ROOT, file), encoding='utf-8') as f:
        return f.read().split('\n')


def check_includes():
    """Includes point upwards only, and name a file by its folder: #include "core/cut.h"."""
    for file in files('src', '.c', '.h', '.def'):
        folder = file.split('/')[1]
        for number, line in enumerate(lines(file), 1):
            match = re.match(r'\s*#\s*include\s*"([^"]*)"', line)
            if not match:
                continue
            of = match.group(1).split('/')[0]
            if of not in FOLDERS or '..' in match.group(1):
                yield f'{file}:{number}: "{match.group(1)}" does not start with a folder of src/'
            elif FOLDERS.index(of) > FOLDERS.index(folder):
                yield f'{file}:{number}: {folder} includes {of}, which stands below it'
            elif of != folder and 'private' in match.group(1):
                yield f'{file}:{number}: {match.group(1)} is private to {of}'


def check_headers():
    """Every header compiles alone."""
    def compile_alone(file):
        done = subprocess.run([CC, '-std=gnu11', '-D_GNU_SOURCE', '-fsyntax-only', '-Wall', '-Wno-unused-function', '-I', os.path.join(ROOT, 'src'), *CFLAGS,
                               '-x', 'c', '-'], input=f'#include "{file[4:]}"\n', capture_output=True, text=True)
        return [] if done.returncode == 0 else [f'{file}:1: does not compile alone: {done.stderr.strip().splitlines()[0]}']
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(compile_alone, files('src', '.h')):
            yield from found


def check_sleeps():
    """Tests wait for the event, they do not sleep. A pause is let pass in a loop that polls, of random length, or with its reason on the line."""
    for file in files('tests', '.c', '.h', '.py', '.sh'):
        if file.startswith('tests/lint/'):
            continue
        text = lines(file)
        for number, line in enumerate(text, 1):
            if not re.search(r'\b(sleep|usleep|nanosleep|g_usleep)\s*\(|^\s*sleep\s+[0-9.]', line):
                continue
            polls = re.search(r'\b(while|for) \(?', line) or re.search(r'\b(while|for) \(?', text[number - 2])
            if not polls and not re.search(r'rand|/\*|#', line):
                yield f'{file}:{number}: sleeps; wait for the event, or say on this line why a pause is needed'


def functions(text):
    """(first line, lines, name, the comment before it) of each function of a C file: from a line that starts with a letter to a line that is `}`."""
    start = name = None
    for number, line in enumerate(text, 1):
        if start is None:
            match = re.match(r'[A-Za-z_].*?(\w+)\(', line)
            name, start = (match.group(1), number) if match and not line.endswith(';') else (None, None)
        elif line.startswith('}'):
            yield start, number - start + 1, name, '\n'.join(text[max(0, start - 8):number])
            start = None
        elif re.match(r'[A-Za-z_#/]', line) and not text[number - 2].endswith((',', '(')):
            start = None
            match = re.match(r'[A-Za-z_].*?(\w+)\(', line)
            if match and not line.endswith(';'):
                name, start = match.group(1), number


def check_lengths():
    """No function has more than 80 lines unless a comment in it or before it says why: `long: reason`."""
    for file in list(files('src', '.c')) + list(files('tests', '.c')):
        for start, count, name, text in functions(lines(file)):
            if count > FUNCTION_LINES_MAX and 'long:' not in text:
                yield f'{file}:{start}: {name}() has {count} lines; at most {FUNCTION_LINES_MAX} without a reason (comment "long: ...")'


def check_man():
    """The man page has the verbs and options of virtcft, no more and no less; every event, every key of the status and of the settings files stands in its
    page."""
    verbs = re.findall(r'^VERB\((\w+),', '\n'.join(lines('src/cli/verbs.def')), re.M)
    page = '\n'.join(lines('man/virtcft.1'))
    listed = list(dict.fromkeys(re.findall(r'^\.It Cm (\w+)', page, re.M)))
    if verbs != listed:
        yield f'man/virtcft.1:1: verbs {listed}, but virtcft has {verbs}'
    options = set(re.findall(r'^\t\t\{ "([a-z-]+)",', '\n'.join(lines('src/cli/main.c')), re.M))
    described = {o for line in re.findall(r'^\.It Fl (.*)', page, re.M) for o in re.findall(r'-([a-z-]{2,})', line)} - {'help'}
    if options != described:
        yield f'man/virtcft.1:1: options {sorted(described)}, but virtcft has {sorted(options)}'
    events = {name for file in files('src/agent', '.c') for name in re.findall(r'events_say\([^,]*, "([a-z-]+)"', '\n'.join(lines(file)))}
    told = {name for line in re.findall(r'^\.It Li (.*)', page, re.M) for name in re.findall(r'[a-z-]+', line)}
    for name in sorted(events - told):
        yield f'man/virtcft.1:1: the event {name} is missing'
    keys = re.findall(r'"([a-z_]+)"', ' '.join(re.findall(r'json_pack\((.*?);', ' '.join(lines('src/agent/status.c')))))
    words = set(re.findall(r'\b[a-z_]+\b', ' '.join(re.findall(r'^(?:\.Va|\.It Va) (.*)', page, re.M))))
    for key in sorted(set(keys) - words - {'lost'}):   # a state
        yield f'man/virtcft.1:1: the key {key} of the status is missing'
    for source, manual in (('src/base/config.c', 'man/cluster.yaml.5'), ('src/base/config-agent.c', 'man/virtcftd.8')):
        text = '\n'.join(lines(source))
        keys = re.findall(r'(?:NAME|TEXT|WORD|LIST|CYAML_FIELD_\w+)\("(\w+)",', text) + re.findall(r'^\t(?:TEXT|NUMBER)\((\w+)', text, re.M)
        named = {word for line in re.findall(r'^\.(?:It )?Ic (.*)', '\n'.join(lines(manual)), re.M) for word in re.findall(r'\w+', line)}
        for key in dict.fromkeys(keys):
            if key not in named:
                yield f'{manual}:1: the key {key} of {source} is missing'


def check_rules():
    """Every rule that is checked at run time stands in the comment of a file: MUST("U1", ...) needs a line with U1."""
    text = {file: lines(file) for file in files('src', '.c', '.h')}
    named = {rule for t in text.values() for line in t if 'MUST(' not in line for rule in re.findall(r'\b([A-Z]{1,3}[0-9]+)\b', line)}
    for file, t in text.items():
        for number, line in enumerate(t, 1):
            for rule in re.findall(r'MUST\("(\w+)"', line):
                if rule not in named:
                    yield f'{file}:{number}: rule {rule} is stated nowhere'


def check_faults():
    """Every fault point can happen (it stands in src/) and is ordered by a test: in C by FAULT_NAME, in Python by name. (Not those of the fault points' own test.)"""
    code = '\n'.join('\n'.join(lines(file)) for file in files('src', '.c'))
    ordered = '\n'.join('\n'.join(lines(file)) for file in files('tests', '.c', '.py', 'run') if not file.startswith(('tests/unit/base/', 'tests/lint/')))
    for number, line in enumerate(lines('src/base/faults.def'), 1):
        for symbol, name in re.findall(r'^FAULT\((\w+), "([\w-]+)"', line):
            if not re.search(rf'\bFAULT_{symbol}\b', code):
                yield f'src/base/faults.def:{number}: {name} stands nowhere in src/'
            if not re.search(rf'\bFAULT_{symbol}\b|["=,]{name}\b', ordered):
                yield f'src/base/faults.def:{number}: no test orders {name}'


CHECKS = {name[6:]: check for name, check in list(globals().items()) if name.startswith('check_')}


def main():
    global ROOT, CC, CFLAGS
    ROOT, CC, CFLAGS = sys.argv[1], sys.argv[2], sys.argv[4:]
    found = list(CHECKS[sys.argv[3]]())
    print('\n'.join(found) or f'{sys.argv[3]}: nothing found')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
