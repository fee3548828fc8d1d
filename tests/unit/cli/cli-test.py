#!/usr/bin/env python3
"""virtcft against an agent that says what the test tells it to: what is sent, what is shown, how it ends.

usage: cli-test.py VIRTCFT"""
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

VIRTCFT = None
PATIENCE = 20
STATUS = {
    'cluster': 'demo', 'host': 'host1', 'state': 'running', 'generation': 2, 'committed': 41, 'released': 40, 'protected': False, 'quorate': True,
    'hosts': [{'name': 'host1', 'state': 'leader', 'address': '10.77.0.1'}, {'name': 'host2', 'state': 'lost'}],
    'vms': [{'name': 'node1', 'host': 'host1', 'backups': ['host2', 'host3'], 'state': 'running', 'memory_bytes': 268435456,
             'last': {'epoch': 41, 'pause_us': 2150.5, 'dirty_pages': 430, 'raw_bytes': 1761280, 'sent_bytes': 310000, 'commit_us': 12000}},
            {'name': 'node2', 'host': None, 'backups': [], 'state': 'running', 'memory_bytes': 1048576, 'last': None}],
    'trouble': None}
CLUSTER = 'cluster: c\nvms:\n  - { name: a, memory: 1M, kernel: k }\n'


class Agent:
    """Answers one client with the given lines (objects or bytes), keeps its request."""

    def __init__(self, folder, *lines):
        self.path, self.lines, self.request = os.path.join(folder, 'control.sock'), lines, None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        client, _ = self.listener.accept()
        with client, client.makefile('rb') as lines:
            self.request = json.loads(lines.readline())
            for line in self.lines:
                client.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b'\n')

    def close(self):
        self.listener.close()
        os.unlink(self.path)


class Cli(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix='vcft-cli-')
        self.addCleanup(shutil.rmtree, self.folder)

    def agent(self, *lines):
        agent = Agent(self.folder, *lines)
        self.addCleanup(agent.close)
        return agent

    def run_cli(self, *arguments, code=0):
        done = subprocess.run([VIRTCFT, '--socket', os.path.join(self.folder, 'control.sock'), *arguments], capture_output=True, text=True,
                              timeout=PATIENCE, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, code, done)
        if code:
            self.assertRegex(done.stderr, r'^virtcft: [^\n]+\n$')
        return done

    def cluster(self, text=CLUSTER):
        for name, content in (('cluster.yaml', text), ('k', 'kernel')):
            with open(os.path.join(self.folder, name), 'w') as f:
                f.write(content)
        return os.path.join(self.folder, 'cluster.yaml')

    # status

    def test_no_verb_is_status(self):
        agent = self.agent({'ok': True, 'status': STATUS})
        lines = self.run_cli().stdout.split('\n')
        self.assertEqual(agent.request, {'verb': 'status'})
        self.assertEqual(lines[0], 'cluster demo  running  generation 2  committed 41  released 40  protected NO')
        self.assertIn('host2  lost    -', lines)
        self.assertRegex('\n'.join(lines), r'node1 +host1 +host2,host3 +running +256\.0 MiB +41 +2\.2 ms +430 +1\.7 MiB +302\.7 KiB +12\.0 ms\n')
        self.assertRegex('\n'.join(lines), r'node2 +- +- +running +1\.0 MiB +- +- +- +- +- +-\n')

    def test_shortages_are_shown(self):
        """This host's with their reasons, the others' by name; each in a line of its own."""
        hosts = [{'name': 'host1', 'state': 'leader', 'address': '10.77.0.1', 'short': ['disk', 'time']},
                 {'name': 'host2', 'state': 'member', 'address': '10.77.0.2', 'short': ['memory', 'backup']}]
        self.agent({'ok': True, 'status': {**STATUS, 'hosts': hosts, 'trouble': 'QEMU failed', 'shortages': [
            {'short': 'disk', 'text': 'node1 waits'}, {'short': 'time', 'text': 'commits take 2.0 s'}]}})
        lines = self.run_cli().stdout.split('\n')
        self.assertEqual(lines[1:6], ['trouble: QEMU failed', 'host1 is short of disk: node1 waits', 'host1 is short of time: commits take 2.0 s',
                                      'host2 is short of memory', 'host2 is short of backup'])
        self.assertEqual(lines[6], '')

    def test_status_json_is_the_agents_object(self):
        self.agent({'ok': True, 'status': STATUS})
        self.assertEqual(json.loads(self.run_cli('status', '--json').stdout), STATUS)

    def test_no_cluster(self):
        self.agent({'ok': True, 'status': {'cluster': None, 'hosts': [], 'vms': []}})
        self.assertIn('virtcft up FILE', self.run_cli().stdout)

    # failures

    def test_no_agent_is_one_clear_line(self):
        done = self.run_cli('status', '--json', code=1)
        self.assertIn('no agent answers', done.stderr)
        self.assertEqual(json.loads(done.stdout)['ok'], False)

    def test_refusal(self):
        self.agent({'ok': False, 'error': 'no cluster is up'})
        self.assertEqual(self.run_cli('down', code=1).stderr, 'virtcft: no cluster is up\n')

    def test_agent_that_ends(self):
        self.agent({'progress': 'recovery-started'})
        self.assertIn('the agent has ended', self.run_cli('up', self.cluster(), code=1).stderr)

    def test_agent_that_talks_nonsense(self):
        for line in (b'hello\n', b'[1]\n', b'\xff\xfe\n'):
            agent = Agent(self.folder, line)
            self.assertIn('is not understood', self.run_cli(code=1).stderr)
            agent.close()

    def test_usage(self):
        for arguments in (['start'], ['up'], ['up', 'a', 'b'], ['console'], ['status', '--follow'], ['down', '--bare', 'x'], ['--nonsense'],
                          ['checkpoint', '3'], ['pki', 'init'], ['pki', 'host', 'd'], ['status', '--replace'], ['up', 'f', '--config', 'c'], ['checkpoint', '--bare', 'x', '0']):
            self.run_cli(*arguments, code=2)

    # pki

    def test_pki_makes_what_check_accepts(self):
        pki = os.path.join(self.folder, 'pki')
        self.assertIn('valid until', self.run_cli('pki', 'init', pki).stdout)
        made = [json.loads(line) for line in self.run_cli('--json', 'pki', 'host', pki, 'host1', 'host2').stdout.splitlines()]
        self.assertEqual([m['path'] for m in made], [os.path.join(pki, 'host1'), os.path.join(pki, 'host2')])
        tls = self.check_tls(f'group: corosync\nname: host1\npki_dir: {pki}/host1\n')
        self.assertTrue(tls['found'])
        self.assertRegex(tls['detail'], r'^certificate of host1, ends in 7[0-9][0-9] days$')
        self.assertIn('is there already', self.run_cli('pki', 'host', pki, 'host3', 'host1', code=1).stderr)
        self.run_cli('pki', 'host', '--replace', pki, 'host1')
        self.assertIn('is there already', self.run_cli('pki', 'init', pki, code=1).stderr)

    def check_tls(self, text):
        config = os.path.join(self.folder, 'virtcftd.yaml')
        with open(config, 'w') as f:
            f.write(text)
        done = subprocess.run([VIRTCFT, 'check', '--json', '--config', config], capture_output=True, text=True, timeout=PATIENCE)
        return next(f for f in json.loads(done.stdout.splitlines()[0])['features'] if f['name'] == 'tls')

    def test_check_says_what_is_wrong_with_tls(self):
        missing = self.check_tls(f'group: corosync\nname: host1\npki_dir: {self.folder}/nowhere\n')
        self.assertFalse(missing['found'] or missing['instead'])
        self.assertIn('virtcft pki', missing['detail'])
        self.assertIn('PLAIN TEXT', self.check_tls('group: corosync\ntls: off\n')['instead'])
        self.assertEqual(self.check_tls('group: local\n')['instead'], 'not needed')

    def test_help_names_every_verb(self):
        text = self.run_cli('--help').stdout
        for verb in ('check', 'up FILE', 'status', 'events', 'checkpoint', 'console VM', 'down'):
            self.assertIn(f'\n  {verb} ', text)

    # up

    def test_up(self):
        agent = self.agent({'progress': 'recovery-started'}, {'ok': True, 'event': 'recovery-finished'})
        self.assertEqual(self.run_cli('up', self.cluster()).stdout, '  recovery-started\nall VMs run\n')
        self.assertEqual(agent.request, {'verb': 'up', 'file': os.path.join(self.folder, 'cluster.yaml'), 'directory': self.folder, 'text': CLUSTER})

    def test_up_json(self):
        self.agent({'progress': 'x'}, {'ok': True, 'generation': 1})
        lines = self.run_cli('up', '--json', self.cluster()).stdout.split('\n')
        self.assertEqual([json.loads(l) for l in lines if l], [{'progress': 'x'}, {'ok': True, 'generation': 1}])

    def test_up_refuses_before_it_asks(self):
        file = self.cluster(CLUSTER.replace('memory', 'memroy'))
        self.assertRegex(self.run_cli('up', file, code=1).stderr, r"cluster\.yaml:3: unknown key 'memroy' .*; expected one of: name, memory")
        os.unlink(os.path.join(self.folder, 'k'))
        self.cluster()
        os.unlink(os.path.join(self.folder, 'k'))
        self.assertRegex(self.run_cli('up', file, code=1).stderr, r"cluster\.yaml:3: kernel '.*/k' cannot be read: No such file")
        self.assertIn('No such file', self.run_cli('up', file + 'x', code=1).stderr)

    # the others

    def test_events(self):
        agent = self.agent({'time': 1, 'event': 'host-lost', 'host': 'host2'}, {'time': 2, 'event': 'degraded'}, {'ok': True})
        lines = self.run_cli('events').stdout.split('\n')
        self.assertRegex(lines[0], r'^\d\d:\d\d:\d\d\.\d\d\d  host-lost  +host host2$')
        self.assertEqual(agent.request, {'verb': 'events', 'follow': False})

    def test_events_follow_json(self):
        events = [{'time': 1, 'event': 'host-lost'}, {'time': 2, 'event': 'recovery-started'}]
        agent = self.agent(*events)
        done = self.run_cli('events', '--follow', '--json', code=1)
        self.assertEqual([json.loads(l) for l in done.stdout.split('\n')[:2]], events)
        self.assertEqual(agent.request, {'verb': 'events', 'follow': True})

    def test_checkpoint(self):
        agent = self.agent({'ok': True, 'epoch': 42})
        self.assertEqual(self.run_cli('checkpoint').stdout, 'checkpoint 42 is committed\n')
        self.assertEqual(agent.request, {'verb': 'checkpoint'})

    def test_bare(self):
        agent = self.agent({'ok': True, 'pause_us': [3000, 1000, 2000.4], 'error': None})
        self.assertEqual(self.run_cli('checkpoint', '--bare', 'node1', '3').stdout,
                         'node1: 3 bare pauses, median 2000 µs, least 1000 µs, most 3000 µs\n')
        self.assertEqual(agent.request, {'verb': 'bare', 'vm': 'node1', 'count': 3})

    def test_bare_fails(self):
        self.agent({'ok': True, 'pause_us': [], 'error': 'QEMU is gone'})
        self.assertIn('node1: QEMU is gone', self.run_cli('checkpoint', '--bare', 'node1', code=1).stderr)

    # check

    def check(self, settings='', before=(), environment=None):
        """The features by name; what is said of them in all must fit each."""
        config = os.path.join(self.folder, 'virtcftd.yaml')
        with open(config, 'w') as f:
            f.write(settings)
        done = subprocess.run([*before, VIRTCFT, 'check', '--json', '--config', config], capture_output=True, text=True, timeout=PATIENCE,
                              env={**os.environ, **(environment or {})})
        answer = json.loads(done.stdout)
        needed = [f['name'] for f in answer['features'] if not f['found'] and not f['instead']]
        self.assertEqual((answer['ok'], done.returncode), (not needed, 1 if needed else 0))
        self.assertIn(f"virtcft: this host cannot run VMs: {', '.join(needed)}\n" if needed else '', done.stderr)
        for f in answer['features']:
            self.assertTrue(f['detail'] and not (f['found'] and f['instead']), f)
        return {f['name']: f for f in answer['features']}

    def missing(self, feature, why, instead):
        self.assertFalse(feature['found'], feature)
        self.assertIn(why, feature['detail'])
        self.assertIn(instead, feature['instead']) if instead else self.assertIsNone(feature['instead'])

    def test_check_of_this_machine(self):
        found = {name: feature['found'] for name, feature in self.check('user: nobody\n').items()}
        self.assertEqual(list(found), ['settings', 'root', 'user', 'corosync', 'tls', 'qemu', 'kvm', 'userfaultfd', 'pagemap-scan', 'userfaultfd-missing', 'preload',
                                       'ram-tmpfs', 'nbdkit', 'disk-plugin', 'qemu-img', 'tun'])
        self.assertEqual(found['root'], os.geteuid() == 0)
        for name in ('nbdkit', 'qemu-img'):
            self.assertEqual(found[name], shutil.which(name) is not None)
        self.assertEqual(found['tun'], os.geteuid() == 0 and os.path.exists('/dev/net/tun'))
        self.assertTrue(found['settings'] and found['user'])

    def test_check_without_qemu(self):
        self.missing(self.check(environment={'VIRTCFT_QEMU': '/nonexistent/qemu'})['qemu'], 'not installed', None)

    def test_check_without_programs(self):
        found = self.check(environment={'PATH': self.folder, 'VIRTCFT_QEMU': '/nonexistent/qemu'})
        for name in ('nbdkit', 'qemu-img', 'disk-plugin'):
            self.missing(found[name], '', 'VMs without disks only')

    def test_check_without_plugins(self):
        found = self.check(f'plugin_dir: {self.folder}\n')
        self.missing(found['disk-plugin'], f'{self.folder}/virtcft-disk.so: cannot be read', 'VMs without disks only')
        self.missing(found['preload'], f'{self.folder}/virtcft-preload.so', 'compare')

    def test_check_of_bad_settings(self):
        self.missing(self.check('ram_dir: /proc/x\n')['ram-tmpfs'], 'is on no tmpfs', None)
        self.missing(self.check('ram_dir: /dev/shm\n')['ram-tmpfs'], 'others may write there', None)
        self.missing(self.check('colour: red\n')['settings'], 'colour', None)
        self.assertIsNone(self.check('group: corosync\ntls: off\n')['corosync']['instead'], 'the group that was asked for')

    def test_check_without_its_user(self):
        if os.geteuid() != 0:
            self.skipTest('an agent that is not root needs none')
        self.missing(self.check('user: vcft-nobody-has-this-name\n')['user'], "there is no user 'vcft-nobody-has-this-name'", None)

    def test_check_without_tun(self):
        hidden = ('unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh')
        if subprocess.run([*hidden, 'true'], stderr=subprocess.DEVNULL).returncode:
            self.skipTest('no namespaces here, or no /dev/net')
        self.missing(self.check(before=hidden)['tun'], 'No such file', 'networks without an uplink only')

    def test_check_by_a_user(self):
        if os.geteuid() != 0:
            self.skipTest('this is one')
        os.chmod(self.folder, 0o755)
        program = shutil.copy(VIRTCFT, self.folder)
        os.chmod(program, 0o755)
        done = subprocess.run(['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups', program, 'check'], capture_output=True, text=True,
                              timeout=PATIENCE)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r'^virtcft: this host cannot run VMs: .*root')

    # console

    def console(self):
        """An agent that names a socket, and the VM's end of it."""
        path = os.path.join(self.folder, 'console.sock')
        serial = socket.socket(socket.AF_UNIX)
        serial.bind(path)
        serial.listen(1)
        self.addCleanup(serial.close)
        serial.settimeout(PATIENCE)
        self.agent({'ok': True, 'socket': path})
        return serial, [VIRTCFT, '--socket', os.path.join(self.folder, 'control.sock'), 'console', 'node1']

    def test_console_elsewhere(self):
        agent = self.agent({'ok': False, 'error': 'node1 runs on host2: ask there'})
        self.assertIn('runs on host2', self.run_cli('console', 'node1', code=1).stderr)
        self.assertEqual(agent.request, {'verb': 'console', 'vm': 'node1'})

    def test_console_pipe(self):
        serial, command = self.console()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        vm, _ = serial.accept()
        process.stdin.write(b'ls\x1d\n')
        process.stdin.close()
        self.assertEqual(vm.recv(100), b'ls\x1d\n')
        vm.sendall(b'file\xff\n')
        vm.close()
        self.assertEqual(process.stdout.read(), b'file\xff\n')
        process.stdout.close()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_console_terminal(self):
        serial, command = self.console()
        main, terminal = pty.openpty()
        process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE)
        vm, _ = serial.accept()
        self.assertIn(b'Ctrl-]', process.stderr.readline())
        vm.sendall(b'login: ')
        seen = b''
        while b'login: ' not in seen:
            seen += os.read(main, 100)
        os.write(main, b'\x03a\x1db')
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertEqual(vm.recv(100), b'\x03a')
        for thing in (vm, process.stderr):
            thing.close()
        os.close(main)
        os.close(terminal)


if __name__ == '__main__':
    VIRTCFT = os.path.abspath(sys.argv.pop(1))
    os.environ['LC_ALL'] = 'C.UTF-8'
    unittest.main(verbosity=2)
