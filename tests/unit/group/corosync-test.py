#!/usr/bin/env python3
"""The corosync backend on real corosyncs: three nodes, each in its own network, mount and IPC namespaces, joined by a bridge.

usage: corosync-test.py PEER        Needs root and corosync; exit code 77 (skipped) without them.
Rules tested: G1 G2 G3 (group.h), GC1-GC5 (corosync.c), Q1-Q4 (quorate.c)."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

CONFIG = """\
totem {{
    version: 2
    cluster_name: t
    transport: udpu
    token: 400
    token_coefficient: 0
    consensus: 480
    crypto_cipher: none
    crypto_hash: none
}}
quorum {{
    provider: corosync_votequorum
    {quorum}
}}
nodelist {{
{nodes}}}
logging {{
    to_stderr: yes
    to_syslog: no
}}
system {{
    move_to_root_cgroup: no
    sched_rr: no
}}
"""
NODE = """\
    node {{
        ring0_addr: 10.99.0.{number}
        nodeid: {node_id}
    }}
"""
PEER = None
PATIENCE = 30


def sh(command):
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Namespace:
    """A process that holds network, mount and IPC namespaces open; gone with this program."""

    def __init__(self, mounts=''):
        self.holder = subprocess.Popen(['unshare', '-n', '-m', '-i', '--propagation', 'private', 'setpriv', '--pdeathsig', 'KILL', 'sh', '-c',
                                        f'ip link set lo up; {mounts} echo ready; exec cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.holder.stdout.readline()

    def command(self, *argv):
        return ['nsenter', '-t', str(self.holder.pid), '-n', '-m', '-i', '--', *argv]

    def sh(self, command):
        sh(' '.join(self.command('sh', '-c', f"'{command}'")))

    def close(self):
        self.holder.kill()
        self.holder.wait()


class Peer:
    """A member: its output is read by a thread, wait() waits for a line."""

    def __init__(self, host):
        self.lines, self.changed = [], threading.Condition()
        self.process = subprocess.Popen(host.command('env', 'VIRTCFT_FAULTS=group-busy:20', PEER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip('\n'))
                self.changed.notify_all()

    def wait(self, test, what, start=0):
        """Wait for the first line from number start that test accepts; give its number."""
        end, at = time.monotonic() + PATIENCE, start
        with self.changed:
            while True:
                while at < len(self.lines):
                    if test(self.lines[at]):
                        return at
                    at += 1
                if not self.changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise AssertionError(f'never came: {what}; lines: {self.lines[start:][-20:]}')

    def members(self, line, start=0):
        return self.wait(lambda l: l == f'members {line}', line, start)

    def say(self, text):
        self.process.stdin.write(text + '\n')
        self.process.stdin.flush()

    def delivered(self):
        return [l for l in self.lines if l.startswith('from ')]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class Host(Namespace):
    """A node: a port of the switch, and corosync, ready to serve."""

    def __init__(self, switch, number, config):
        super().__init__(''.join(f'mount -t tmpfs none {d};' for d in ('/dev/shm', '/run', '/var/lib/corosync')))
        in_switch = f'nsenter -t {switch.holder.pid} -n ip link'
        sh(f'{in_switch} add port{number} type veth peer name eth0 netns {self.holder.pid}')
        sh(f'{in_switch} set port{number} master br0 up')
        self.sh(f'ip addr add 10.99.0.{number}/24 dev eth0 && ip link set eth0 up')
        self.corosync = subprocess.Popen(self.command('setpriv', '--pdeathsig', 'KILL', 'corosync', '-f', '-c', config), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.ready, self.log = threading.Event(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.corosync.stderr:
            self.log.append(line)
            if 'ready to provide service' in line:
                self.ready.set()
        self.ready.set()

    def close(self):
        self.corosync.kill()
        self.corosync.wait()
        super().close()


class Cluster:
    def __init__(self, ids, quorum=''):
        self.folder = tempfile.mkdtemp(prefix='vcft-group-')
        config = os.path.join(self.folder, 'corosync.conf')
        with open(config, 'w') as f:
            f.write(CONFIG.format(quorum=quorum, nodes=''.join(NODE.format(number=i + 1, node_id=n) for i, n in enumerate(ids))))
        self.switch, self.hosts, self.peers = Namespace('ip link add br0 type bridge && ip link set br0 up;'), [], []
        for i in range(len(ids)):
            self.hosts.append(Host(self.switch, i + 1, config))
        for host in self.hosts:
            if not host.ready.wait(PATIENCE) or host.corosync.poll() is not None:
                raise AssertionError('corosync does not start: ' + ''.join(host.log[-5:]))

    def join(self, i):
        peer = Peer(self.hosts[i])
        self.peers.append(peer)
        peer.wait(lambda l: l.startswith(('self ', 'error ')), 'an answer')
        return peer

    def link(self, number, state):
        sh(f'nsenter -t {self.switch.holder.pid} -n ip link set port{number} {state}')

    def close(self):
        for thing in self.peers + self.hosts + [self.switch]:
            thing.close()
        shutil.rmtree(self.folder)


class One(unittest.TestCase):
    def refused(self, ids, quorum, text):
        cluster = Cluster(ids, quorum)
        self.addCleanup(cluster.close)
        peer = cluster.join(0)
        self.assertIn(text, peer.lines[0])

    def test_two_node_is_refused(self):
        self.refused([1, 2], 'two_node: 1', 'two_node')

    def test_expected_votes_below_nodes_are_refused(self):
        self.refused([1, 2, 3], 'expected_votes: 1', 'expected_votes is 1 with 3 nodes')

    def test_node_id_out_of_range_is_refused(self):
        self.refused([64], '', 'node has id 64; expected a nodeid of 1 to 63')

    def test_no_corosync_is_one_clear_line(self):
        host = Namespace('mount -t tmpfs none /dev/shm; mount -t tmpfs none /run;')
        self.addCleanup(host.close)
        peer = Peer(host)
        self.addCleanup(peer.close)
        peer.wait(lambda l: l.startswith('error corosync: ') and l.endswith('(does corosync run on this host?)'), 'the error')

    def test_second_agent_and_end_of_corosync(self):
        cluster = Cluster([7])
        self.addCleanup(cluster.close)
        first = cluster.join(0)
        first.members('0x80 1')
        second = cluster.join(0)
        self.assertRegex(second.lines[0], r'error an agent of this host \(process \d+\) is in the group already')
        cluster.hosts[0].corosync.kill()
        first.wait(lambda l: l.startswith('lost corosync'), 'lost')
        self.assertEqual(first.process.wait(PATIENCE), 0)


class Three(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster([1, 2, 3])
        cls.peers = [cls.cluster.join(i) for i in range(3)]
        for p in cls.peers:
            p.members('0xe 1')

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()

    def test_1_one_order_for_all(self):
        for p in self.peers:
            p.say('burst 300 200')
            p.say('burst 4 600000')
            p.say('send end')
        for p in self.peers:
            for host in (1, 2, 3):
                p.wait(lambda l: l == f'from {host} 3 end', f'end of {host}')
        logs = [p.delivered() for p in self.peers]
        self.assertEqual(len(logs[0]), 3 * 305)
        self.assertEqual(logs[0], logs[1])
        self.assertEqual(logs[0], logs[2])
        for host in (1, 2, 3):
            mine = [l for l in logs[0] if l.startswith(f'from {host} 200 ')]
            self.assertEqual(mine, [f'from {host} 200 {host}/{i}' for i in range(300)])

    def test_2_an_agent_that_ends_takes_no_vote(self):
        marks = [len(p.lines) for p in self.peers]
        self.peers[2].process.send_signal(signal.SIGKILL)
        for p, mark in zip(self.peers[:2], marks):
            p.members('0x6 1', mark)
            self.assertEqual([l for l in p.lines[mark:] if l.startswith('members')], ['members 0x6 1'])
        marks = [len(p.lines) for p in self.peers]
        self.peers[2] = self.cluster.join(2)
        for p, mark in zip(self.peers[:2], marks):
            p.members('0xe 1', mark)
        self.peers[2].members('0xe 1')

    def test_3_the_one_cut_off_is_never_quorate(self):
        marks = [len(p.lines) for p in self.peers]
        self.cluster.link(1, 'down')
        self.peers[0].members('0x2 0', marks[0])
        for p, mark in zip(self.peers[1:], marks[1:]):
            p.members('0xc 1', mark)
        self.peers[1].say('send majority')
        self.peers[2].wait(lambda l: l == 'from 2 8 majority', 'majority')
        self.cluster.link(1, 'up')
        for p, mark in zip(self.peers, marks):
            p.members('0xe 1', p.members('0x2 0' if p is self.peers[0] else '0xc 1', mark))
        self.assertNotIn('members 0x2 1', self.peers[0].lines[marks[0]:])
        self.assertFalse([l for l in self.peers[0].lines if l.endswith('majority')])

    def test_4_a_node_that_dies(self):
        marks = [len(p.lines) for p in self.peers]
        self.cluster.hosts[1].corosync.kill()
        self.peers[1].wait(lambda l: l.startswith('lost '), 'lost')
        for i in (0, 2):
            self.peers[i].members('0xa 1', marks[i])
            self.assertNotIn('members 0x2 1', self.peers[i].lines[marks[i]:])


def skip(why):
    print(f'skipped: {why}')
    sys.exit(77)


if __name__ == '__main__':
    PEER = os.path.abspath(sys.argv.pop(1))
    if os.geteuid() != 0:
        skip('not root')
    for tool in ('corosync', 'unshare', 'nsenter', 'setpriv', 'ip'):
        if not shutil.which(tool):
            skip(f'no {tool}')
    if subprocess.run(['unshare', '-n', '-m', '-i', 'true'], stderr=subprocess.DEVNULL).returncode:
        skip('no namespaces here')
    unittest.main(verbosity=2, warnings='ignore')
