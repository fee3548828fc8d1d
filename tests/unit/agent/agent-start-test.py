#!/usr/bin/env python3
"""virtcftd where something is missing: what it says at its start, what `virtcft up` says; each in one line. No VM ever runs.

usage: agent-start-test.py VIRTCFTD VIRTCFT        Needs root and namespaces; exit code 77 (skipped) without them."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

VIRTCFTD = VIRTCFT = None
PATIENCE = 30
NO_TUN = ('unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh')
VM = 'cluster: c\nvms:\n  - { name: a, memory: 16M, kernel: k }\n'
UPLINK = VM + 'networks: [ { name: wan, uplink: vcft-none } ]\n'


class Start(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix='vcft-agent-')
        os.chmod(self.folder, 0o755)
        self.ram = tempfile.mkdtemp(prefix='vcft-agent-', dir='/dev/shm')
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(shutil.rmtree, self.ram)
        self.lines = []

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, 'w') as f:
            f.write(text)
        os.chmod(path, 0o644)
        return path

    def settings(self, **more):
        keys = {'name': 'solo', 'user': 'nobody', 'run_dir': f'{self.folder}/run', 'state_dir': f'{self.folder}/state', 'ram_dir': f'{self.ram}/ram', **more}
        return self.write('virtcftd.yaml', ''.join(f'{key}: {value}\n' for key, value in keys.items()))

    def start(self, *before, environment=None, **more):
        """An agent that serves; what it has said by then is in self.lines."""
        agent = subprocess.Popen([*before, VIRTCFTD, '--config', self.settings(**more)], env={**os.environ, **(environment or {})}, text=True,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        serves = threading.Event()

        def read():
            for line in agent.stderr:
                self.lines.append(line.rstrip('\n'))
                if ' serves, group ' in line:
                    serves.set()
            serves.set()
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for step in (agent.stderr.close, reader.join, agent.wait, agent.terminate):   # the last one first
            self.addCleanup(step)
        self.assertTrue(serves.wait(PATIENCE))
        self.assertIsNone(agent.poll(), self.lines)
        self.agent = agent

    def cli(self, *arguments):
        return subprocess.run([VIRTCFT, '--socket', f'{self.folder}/run/control.sock', *arguments], capture_output=True, text=True, timeout=PATIENCE)

    def missing(self, name):
        """The lines that say so."""
        return [line for line in self.lines if f' {name} is missing here (' in line]

    def up(self, text):
        self.write('k', 'no kernel')
        done = self.cli('up', self.write('cluster.yaml', text))
        self.assertEqual(done.returncode, 1, done)
        self.assertRegex(done.stderr, r'^virtcft: [^\n]+\n$')
        self.assertEqual(self.cli('status').returncode, 0, 'the agent serves on')
        return done.stderr

    def refused(self, *before, code=1, **more):
        """The one line of an agent that does not start."""
        done = subprocess.run([*before, VIRTCFTD, '--config', self.settings(**more)], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, code, done)
        self.assertRegex(done.stderr, r'^virtcftd: [^\n]+\n$')
        return done.stderr

    def test_what_is_there_is_not_missing(self):
        self.start()
        check = self.cli('check', '--json', '--config', os.path.join(self.folder, 'virtcftd.yaml')).stdout
        for name, found in re.findall(r'"name":"([a-z-]+)","found":(true|false)', check):
            if name not in ('settings', 'root', 'user', 'corosync', 'tls'):
                self.assertEqual(len(self.missing(name)), found == 'false', name)

    def test_no_qemu(self):
        self.start(environment={'VIRTCFT_QEMU': '/nonexistent/qemu'})
        self.assertEqual(len(self.missing('qemu')), 1)
        self.assertIn('no VM can run', self.missing('qemu')[0])
        self.assertIn('no QEMU found', self.up(VM))

    def test_no_tun(self):
        self.start(*NO_TUN)
        self.assertEqual(len(self.missing('tun')), 1)
        self.assertIn('networks without an uplink only', self.missing('tun')[0])
        self.assertRegex(self.up(UPLINK), r'network wan: /dev/net/tun: No such file')

    def test_no_plugins(self):
        os.mkdir(f'{self.folder}/empty')
        self.start(plugin_dir=f'{self.folder}/empty')
        self.assertEqual([len(self.missing(name)) for name in ('disk-plugin', 'preload')], [1, 1])
        self.assertIn('compare', self.missing('preload')[0])

    def test_no_user(self):
        self.assertIn("there is no user 'vcft-nobody-has-this-name'", self.refused(user='vcft-nobody-has-this-name', code=2))

    def test_not_root(self):
        program = os.path.join(self.folder, 'virtcftd')
        shutil.copy(VIRTCFTD, program)
        os.chmod(program, 0o755)
        os.chmod(self.folder, 0o755)
        done = subprocess.run(['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups', program, '--config', self.settings()],
                              capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 1, done)
        self.assertRegex(done.stderr, r'^virtcftd: the agent starts as root, this is user \d+: [^\n]+\n$')

    def test_a_promise_that_is_damaged(self):
        os.mkdir(f'{self.folder}/state')
        self.write('state/generation', '193 258\n')
        self.assertIn('state/generation is damaged', self.refused())

    def test_memory_on_a_disk(self):
        self.assertIn('ram_dir /proc/x is on no tmpfs', self.refused(ram_dir='/proc/x'))


def skip(why):
    print(f'skipped: {why}')
    sys.exit(77)


if __name__ == '__main__':
    VIRTCFTD, VIRTCFT = (os.path.abspath(path) for path in sys.argv[1:3])
    del sys.argv[1:3]
    os.environ['LC_ALL'] = 'C.UTF-8'
    if os.geteuid() != 0:
        skip('not root')
    for tool in ('unshare', 'setpriv'):
        if not shutil.which(tool):
            skip(f'no {tool}')
    if subprocess.run([*NO_TUN, 'true'], stderr=subprocess.DEVNULL).returncode:
        skip('no namespaces here, or no /dev/net')
    unittest.main(verbosity=2)
