/* test-config.c - C1-C5 and Y1-Y4: what a good cluster.yaml means, and that a bad one is refused with its line and what was expected.
 *
 * A bad file is the good one with one change: the table says which, and the whole message. */
#include "base/config.h"

#include <glib/gstdio.h>
#include <string.h>

static const char good[] =
	"cluster: demo\n"                                                    /* 1 */
	"checkpoint: { interval: 250ms, backups: 1, hot_pages: false }\n"    /* 2 */
	"degraded: hold\n"                                                   /* 3 */
	"verify: true\n"                                                     /* 4 */
	"hosts:\n"                                                           /* 5 */
	"  - { name: host1, address: 10.77.0.1 }\n"                          /* 6 */
	"  - { name: host2, address: 10.77.0.2 }\n"                          /* 7 */
	"networks:\n"                                                        /* 8 */
	"  - { name: lan }\n"                                                /* 9 */
	"  - { name: wan, uplink: vcft-wan, output: immediate }\n"           /* 10 */
	"vms:\n"                                                             /* 11 */
	"  - name: node1\n"                                                  /* 12 */
	"    memory: 256M\n"                                                 /* 13 */
	"    cpus: 2\n"                                                      /* 14 */
	"    kernel: vmlinuz\n"                                              /* 15 */
	"    initrd: sub/initrd.img\n"                                       /* 16 */
	"    append: console=ttyS0 quiet\n"                                  /* 17 */
	"    machine: q35\n"                                                 /* 18 */
	"    cpu: host\n"                                                    /* 19 */
	"    disks: [ { image: node1.qcow2 } ]\n"                            /* 20 */
	"    nics: [ { network: wan, mac: 52:54:00:0a:00:01 } ]\n"           /* 21 */
	"    host: host1\n"                                                  /* 22 */
	"    qemu: [ -device, virtio-rng-pci ]\n"                            /* 23 */
	"  - name: node2\n"                                                  /* 24 */
	"    memory: 1G\n"                                                   /* 25 */
	"    disks: [ { image: /images/node2.raw } ]\n"                      /* 26 */
	"    nics: [ { network: lan }, { network: lan } ]\n";                /* 27 */

static struct config_cluster *parse(const char *text, GError **error)
{
	return config_cluster_parse(text, strlen(text), "c.yaml", "/dir", false, error);
}

/* good with the first `was` made into `is`. */
static char *changed(const char *was, const char *is)
{
	const char *at = strstr(good, was);
	g_assert_nonnull(at);
	g_autofree char *before = g_strndup(good, (gsize)(at - good));
	return g_strconcat(before, is, at + strlen(was), NULL);
}

static void assert_refused(const char *text, const char *message)
{
	g_autoptr(GError) error = NULL;
	g_assert_null(parse(text, &error));
	g_assert_cmpstr(error->message, ==, message);
	g_assert_true(error->domain == CONFIG_ERROR);
}

static void test_good(void)
{
	g_autoptr(GError) error = NULL;
	struct config_cluster *c = parse(good, &error);
	g_assert_no_error(error);
	g_assert_cmpstr(c->name, ==, "demo");
	g_assert_cmpint(c->interval, ==, 250 * NSEC_PER_MSEC);
	g_assert_cmpuint(c->backups, ==, 1);
	g_assert_true(c->hold_when_degraded && c->verify && !c->hot_pages);
	g_assert_cmpuint(c->host_count, ==, 2);
	g_assert_cmpstr(c->hosts[1].name, ==, "host2");
	g_assert_cmpstr(c->hosts[1].address, ==, "10.77.0.2");
	g_assert_cmpuint(c->network_count, ==, 2);
	g_assert_null(c->networks[0].uplink);
	g_assert_true(c->networks[0].commit);
	g_assert_cmpstr(c->networks[1].uplink, ==, "vcft-wan");
	g_assert_false(c->networks[1].commit);
	g_assert_cmpuint(c->vm_count, ==, 2);
	config_cluster_free(c);
}

static void test_good_vms(void)
{
	struct config_cluster *c = parse(good, NULL);
	const struct config_vm *a = &c->vms[0], *b = &c->vms[1];
	const uint8_t mac[] = { 0x52, 0x54, 0, 0x0a, 0, 1 };
	g_assert_cmpuint(a->memory_bytes, ==, UINT64_C(256) << 20);
	g_assert_cmpuint(a->cpus, ==, 2);
	g_assert_cmpstr(a->machine, ==, "q35");
	g_assert_cmpstr(a->cpu, ==, "host");
	g_assert_cmpstr(a->kernel, ==, "/dir/vmlinuz");
	g_assert_cmpstr(a->initrd, ==, "/dir/sub/initrd.img");
	g_assert_cmpstr(a->append, ==, "console=ttyS0 quiet");
	g_assert_cmpstr(a->disks[0].image, ==, "/dir/node1.qcow2");
	g_assert_cmpuint(a->nics[0].network, ==, 1);
	g_assert_cmpmem(a->nics[0].mac, 6, mac, 6);
	g_assert_cmpstr(a->host, ==, "host1");
	g_assert_cmpstr(a->qemu[1], ==, "virtio-rng-pci");
	g_assert_null(a->qemu[2]);
	g_assert_cmpuint(b->memory_bytes, ==, UINT64_C(1) << 30);
	g_assert_cmpuint(b->cpus, ==, 1);
	g_assert_cmpstr(b->disks[0].image, ==, "/images/node2.raw");
	g_assert_true(!b->kernel && !b->host && !b->qemu && !b->machine);
	config_cluster_free(c);
}

static void test_defaults(void)
{
	struct config_cluster *c = parse("cluster: c\nvms: [ { name: a, memory: 64M, kernel: k } ]\n", NULL);
	g_assert_nonnull(c);
	g_assert_cmpint(c->interval, ==, 100 * NSEC_PER_MSEC);
	g_assert_cmpuint(c->backups, ==, 0);
	g_assert_false(c->hold_when_degraded || c->verify);
	g_assert_true(c->hot_pages);
	g_assert_cmpuint(c->host_count + c->network_count + c->vms[0].nic_count + c->vms[0].disk_count, ==, 0);
	config_cluster_free(c);
	g_autofree char *text = changed("checkpoint: { interval: 250ms, backups: 1, hot_pages: false }\n", "");
	c = parse(text, NULL);
	g_assert_cmpuint(c->backups, ==, 1);
	config_cluster_free(c);
}

/* C4 */
static void test_c4_macs(void)
{
	struct config_cluster *c = parse(good, NULL), *again = parse(good, NULL);
	const struct config_nic *n = c->vms[1].nics, *m = again->vms[1].nics;
	const uint8_t prefix[] = { 0x52, 0x54, 0 };
	g_assert_cmpmem(n[0].mac, 3, prefix, 3);
	g_assert_cmpint(memcmp(n[0].mac, n[1].mac, 6), !=, 0);
	g_assert_cmpmem(n[0].mac, 6, m[0].mac, 6);
	g_assert_cmpmem(n[1].mac, 6, m[1].mac, 6);
	/* Taken by a VM that gives it: another one is made. */
	g_autofree char *mac = g_strdup_printf("52:54:00:%02X:%02X:%02X", n[0].mac[3], n[0].mac[4], n[0].mac[5]);
	g_autofree char *text = changed("52:54:00:0a:00:01", mac);
	struct config_cluster *other = parse(text, NULL);
	g_assert_cmpmem(other->vms[0].nics[0].mac, 6, n[0].mac, 6);
	g_assert_cmpint(memcmp(other->vms[1].nics[0].mac, n[0].mac, 6), !=, 0);
	config_cluster_free(c);
	config_cluster_free(again);
	config_cluster_free(other);
}

#define VM_KEYS "name, memory, cpus, machine, cpu, kernel, initrd, append, disks, nics, host, qemu"
#define FILE_KEYS "cluster, checkpoint, degraded, verify, hosts, networks, vms"
#define TIME "expected a whole number with unit ms or s, 5ms to 600s, such as 100ms"
#define MEMORY "expected a whole number with unit K, M, G or T, 1M to 1T, such as 256M"
#define NAME "expected letters, digits and _.-, the first a letter or digit"
#define YAML "expected 'key: value' lines, indented by spaces"

static const struct { const char *was, *is, *message; } bad[] = {
	/* keys and kinds */
	{ "memory: 256M", "memroy: 256M", "c.yaml:13: unknown key 'memroy' in an entry of 'vms'; expected one of: " VM_KEYS },
	{ "interval:", "intervall:", "c.yaml:2: unknown key 'intervall' in 'checkpoint'; expected one of: interval, backups, hot_pages" },
	{ "cluster: demo", "cluster: demo\nHosts: []", "c.yaml:2: unknown key 'Hosts' in the file; expected one of: " FILE_KEYS },
	{ "cpus: 2", "cpus: 2\n    cpus: 3", "c.yaml:15: 'cpus' is given twice in an entry of 'vms', first on line 14; expected once" },
	{ "    memory: 1G\n", "", "c.yaml:24: 'memory' is missing in an entry of 'vms'; expected it here" },
	{ "cluster: demo\n", "", "c.yaml:1: 'cluster' is missing in the file; expected it here" },
	{ "memory: 1G", "memory:", "c.yaml:25: 'memory' is empty; expected text" },
	{ "verify: true", "verify: yes", "c.yaml:4: 'verify' is 'yes'; expected false or true" },
	{ "degraded: hold", "degraded: wait", "c.yaml:3: 'degraded' is 'wait'; expected run or hold" },
	{ "output: immediate", "output: never", "c.yaml:10: 'output' is 'never'; expected commit or immediate" },
	{ "cpus: 2", "cpus: -2", "c.yaml:14: 'cpus' is '-2'; expected a whole number, 0 to 4294967295" },
	{ "cpus: 2", "cpus: two", "c.yaml:14: 'cpus' is 'two'; expected a whole number, 0 to 4294967295" },
	{ "cpus: 2", "? [ a ]\n    : 2", "c.yaml:14: unknown key 'a list' in an entry of 'vms'; expected one of: " VM_KEYS },
	{ "checkpoint: { interval: 250ms, backups: 1, hot_pages: false }", "checkpoint: 250ms",
	  "c.yaml:2: 'checkpoint' is a single value; expected a mapping with keys of: interval, backups, hot_pages" },
	{ "disks: [ { image: node1.qcow2 } ]", "disks: node1.qcow2",
	  "c.yaml:20: 'disks' is a single value; expected a list, [ ... ] or lines that start with '-'" },
	{ "[ { image: node1.qcow2 } ]", "[ node1.qcow2 ]", "c.yaml:20: an entry of 'disks' is a single value; expected a mapping with keys of: image" },
	{ "append: console=ttyS0 quiet", "append: [ quiet ]", "c.yaml:17: 'append' is a list; expected text" },
	{ "append: console=ttyS0 quiet", "append: \"a\\0b\"", "c.yaml:17: 'append' has a NUL byte in it; expected text" },
	{ "{ image: node1.qcow2 }", "{image: a},{image: a},{image: a},{image: a},{image: a},{image: a},{image: a},{image: a},{image: a}",
	  "c.yaml:20: 'disks' has 9 entries; expected 0 to 8" },
	/* units and limits */
	{ "250ms", "250", "c.yaml:2: interval '250' is not understood; " TIME },
	{ "250ms", "4ms", "c.yaml:2: interval '4ms' is not understood; " TIME },
	{ "250ms", "0.5s", "c.yaml:2: interval '0.5s' is not understood; " TIME },
	{ "250ms", "-1s", "c.yaml:2: interval '-1s' is not understood; " TIME },
	{ "250ms", "99999999999999999999s", "c.yaml:2: interval '99999999999999999999s' is not understood; " TIME },
	{ "250ms", "18446744073709551615s", "c.yaml:2: interval '18446744073709551615s' is not understood; " TIME },
	{ "256M", "256", "c.yaml:13: vm 'node1': memory '256' is not understood; " MEMORY },
	{ "256M", "256MB", "c.yaml:13: vm 'node1': memory '256MB' is not understood; " MEMORY },
	{ "256M", "1025K", "c.yaml:13: vm 'node1': memory '1025K' is not understood; " MEMORY },
	{ "256M", "2T", "c.yaml:13: vm 'node1': memory '2T' is not understood; " MEMORY },
	{ "cpus: 2", "cpus: 0", "c.yaml:14: vm 'node1' has 0 cpus; expected 1 to 255" },
	{ "backups: 1", "backups: 2", "c.yaml:2: 2 backups and 2 hosts; expected fewer backups than hosts" },
	/* names */
	{ "network: wan", "network: wam", "c.yaml:21: vm 'node1': there is no network 'wam'; expected one of 'networks'" },
	{ "host: host1", "host: host3", "c.yaml:22: vm 'node1': there is no host 'host3'; expected one of 'hosts'" },
	{ "name: node2", "name: node1", "c.yaml:24: vm 'node1' is used twice, first on line 12; expected one of its own" },
	{ "name: host2", "name: host1", "c.yaml:7: host 'host1' is used twice, first on line 6; expected one of its own" },
	{ "10.77.0.2", "10.77.0.1", "c.yaml:7: address '10.77.0.1' is used twice, first on line 6; expected one of its own" },
	{ "name: lan", "name: wan", "c.yaml:10: network 'wan' is used twice, first on line 9; expected one of its own" },
	{ "name: node1", "name: ../node1", "c.yaml:12: vm '../node1' is no name; " NAME },
	{ "cluster: demo", "cluster: \"a\\nb\\e[2J\"", "c.yaml:1: cluster 'a?b?[2J' is no name; " NAME },
	{ "cluster: demo", "cluster: a b", "c.yaml:1: cluster 'a b' is no name; " NAME },
	{ "10.77.0.2", "host2.lan", "c.yaml:7: address 'host2.lan' of host 'host2' is no IPv4 address; expected such as 10.77.0.1" },
	{ "vcft-wan", "sixteen-letters-", "c.yaml:10: uplink 'sixteen-letters-' is no name of a network interface; expected at most 15 letters, digits and _.-" },
	/* MACs */
	{ "{ network: lan }", "{ network: lan, mac: 52:54:00:0A:00:01 }",
	  "c.yaml:27: mac '52:54:00:0a:00:01' is used twice, first on line 21; expected one of its own" },
	{ "52:54:00:0a", "53:54:00:0a",
	  "c.yaml:21: mac '53:54:00:0a:00:01' is a multicast or the zero address; expected that of one NIC, such as 52:54:00:00:00:01" },
	{ "52:54:00:0a:00:01", "52-54-00-0a-00-01",
	  "c.yaml:21: mac '52-54-00-0a-00-01' is no MAC address; expected six bytes such as 52:54:00:00:00:01" },
	{ "52:54:00:0a:00:01", "52:54:00:0a:00", "c.yaml:21: mac '52:54:00:0a:00' is no MAC address; expected six bytes such as 52:54:00:00:00:01" },
	/* boot */
	{ "    disks: [ { image: /images/node2.raw } ]\n", "", "c.yaml:24: vm 'node2' has nothing to boot from; expected a kernel or a disk" },
	{ "    kernel: vmlinuz\n", "", "c.yaml:12: vm 'node1' has an initrd or append, but no kernel; expected 'kernel' with them" },
	/* YAML */
	{ "    cpus: 2", "\tcpus: 2", "c.yaml:14: this is not YAML: found a tab character that violates indentation while scanning a plain scalar; " YAML },
	{ "memory: 1G", "memory: &m 1G", "c.yaml:25: anchors (&) and aliases (*) are not read; expected every value written out" },
	{ "memory: 1G", "<<: *m", "c.yaml:25: anchors (&) and aliases (*) are not read; expected every value written out" },
	{ "memory: 1G", "memory: !!str 1G", "c.yaml:25: tags (!) are not read; expected plain values" },
	{ "vms:\n", "---\nvms:\n", "c.yaml:11: a second document starts here; expected one" },
	{ "quiet", "\007", "c.yaml:17: this is not YAML: control characters are not allowed; " YAML },
	{ "quiet", "\377", "c.yaml:17: this is not text: byte 0xff; expected UTF-8" },
};

static void test_c1_refused(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autofree char *text = changed(bad[i].was, bad[i].is);
		assert_refused(text, bad[i].message);
	}
	assert_refused("", "c.yaml:1: there is nothing in it; expected a mapping with keys of: " FILE_KEYS);
	assert_refused("# nothing\n", "c.yaml:1: there is nothing in it; expected a mapping with keys of: " FILE_KEYS);
	assert_refused("- a\n", "c.yaml:1: the file is a list; expected a mapping with keys of: " FILE_KEYS);
}

/* Y1: files that are made to cost more than they are worth. */
static void test_y1_bombs(void)
{
	g_autofree char *huge = g_strnfill(CONFIG_TEXT_MAX + 1, 'a'), *deep = g_strnfill(400000, '['), *open = g_strnfill(400000, '{');
	g_autoptr(GString) many = g_string_new("cluster: [");
	g_autoptr(GString) laughs = g_string_new("a: &a [x,x,x,x,x,x,x,x,x]\n");
	for (int i = 0; i < 100000; i++)
		g_string_append(many, "a,");
	g_string_append(many, "a]\n");
	for (char c = 'b'; c <= 'i'; c++)
		g_string_append_printf(laughs, "%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1);
	assert_refused(huge, "c.yaml:1: 491521 bytes; expected at most 491520");
	assert_refused(deep, "c.yaml:1: nested too deeply; expected at most 12 levels");
	assert_refused(open, "c.yaml:1: nested too deeply; expected at most 12 levels");
	assert_refused(many->str, "c.yaml:1: too many values; expected at most 65536");
	assert_refused(laughs->str, "c.yaml:1: anchors (&) and aliases (*) are not read; expected every value written out");
}

static void test_too_many_vms(void)
{
	g_autoptr(GString) text = g_string_new("cluster: c\nvms:\n");
	for (unsigned i = 0; i < VCFT_VM_MAX; i++)
		g_string_append_printf(text, "  - { name: v%u, memory: 1M, kernel: k }\n", i);
	struct config_cluster *c = parse(text->str, NULL);
	g_assert_cmpuint(c->vm_count, ==, VCFT_VM_MAX);
	config_cluster_free(c);
	g_string_append(text, "  - { name: more, memory: 1M, kernel: k }\n");
	assert_refused(text->str, "c.yaml:3: 'vms' has 257 entries; expected 1 to 256");
}

/* C5 */
static void test_c5_files(void)
{
	g_autofree char *dir = g_dir_make_tmp("vcft-config-XXXXXX", NULL), *kernel = g_build_filename(dir, "k", NULL);
	g_autofree char *message = g_strdup_printf("c.yaml:3: kernel '%s' cannot be read: No such file or directory; expected a file (relative paths start at %s)", kernel, dir);
	const char *text = "cluster: c\nvms:\n  - { name: a, memory: 1M, kernel: k }\n";
	g_autoptr(GError) error = NULL;
	g_assert_null(config_cluster_parse(text, strlen(text), "c.yaml", dir, true, &error));
	g_assert_cmpstr(error->message, ==, message);
	g_assert_true(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_FILE));
	g_clear_error(&error);
	g_mkdir(kernel, 0700);
	g_assert_null(config_cluster_parse(text, strlen(text), "c.yaml", dir, true, &error));
	g_assert_nonnull(strstr(error->message, "Is a directory"));
	g_rmdir(kernel);
	g_file_set_contents(kernel, "x", 1, NULL);
	struct config_cluster *c = config_cluster_parse(text, strlen(text), "c.yaml", dir, true, NULL);
	g_assert_cmpstr(c->vms[0].kernel, ==, kernel);
	config_cluster_free(c);
	g_unlink(kernel);
	g_rmdir(dir);
}

/* Any part cut out, any byte changed: a cluster or an error, never both, never neither. */
static void test_damaged(void)
{
	for (int i = 0; i < 4000; i++) {
		g_autofree char *text = g_strdup(good);
		size_t n = strlen(text);
		int at = g_test_rand_int_range(0, (gint32)n);
		if (i % 2)
			text[at] = (char)g_test_rand_int_range(1, 256);
		else
			n = (size_t)at;
		g_autoptr(GError) error = NULL;
		struct config_cluster *c = config_cluster_parse(text, n, "c.yaml", "/dir", false, &error);
		g_assert_true((c != NULL) == (error == NULL));
		g_assert_true(!error || (g_str_has_prefix(error->message, "c.yaml:") && strstr(error->message, "; expected ")));
		config_cluster_free(c);
	}
}

/* ---- virtcftd.yaml ---- */

static struct config_agent *read_agent(const char *text, GError **error)
{
	g_autofree char *dir = g_dir_make_tmp("vcft-config-XXXXXX", NULL), *file = g_build_filename(dir, "a.yaml", NULL);
	g_file_set_contents(file, text, -1, NULL);
	struct config_agent *a = config_agent_read(file, error);
	g_unlink(file);
	g_rmdir(dir);
	return a;
}

static void test_agent(void)
{
	struct config_agent *a = read_agent("# all defaults\n", NULL);
	g_assert_cmpstr(a->name, ==, g_get_host_name());
	g_assert_cmpstr(a->group, ==, "local");
	g_assert_cmpstr(a->address, ==, "127.0.0.1");
	g_assert_cmpstr(a->run_dir, ==, "/run/virtcft");
	g_assert_cmpuint(a->tunnel_port, ==, 0);
	g_assert_cmpstr(a->user, ==, "virtcft");
	g_assert_null(a->control_group);
	g_assert_cmpuint(a->backup_memory, >, 64 << 20);
	g_assert_cmpuint(a->backup_rate, ==, 2 << 20);
	g_assert_cmpint(a->backup_timeout, ==, 3 * NSEC_PER_SEC);
	g_assert_cmpuint(a->held_memory, ==, 64 << 20);
	g_assert_cmpuint(a->queue_memory, ==, 16 << 20);
	config_agent_free(a);
	a = read_agent("backup_memory: 3G\nbackup_rate: 0K\nbackup_timeout: 250ms\n", NULL);
	g_assert_cmpuint(a->backup_memory, ==, UINT64_C(3) << 30);
	g_assert_cmpuint(a->backup_rate, ==, 0);
	g_assert_cmpint(a->backup_timeout, ==, 250 * NSEC_PER_MSEC);
	config_agent_free(a);
	a = read_agent("name: host1\ngroup: corosync\naddress: 10.77.0.1\nram_dir: /x\ntunnel_port: 7000\nplugin_dir: /p\n", NULL);
	g_assert_cmpstr(a->name, ==, "host1");
	g_assert_cmpstr(a->group, ==, "corosync");
	g_assert_cmpstr(a->ram_dir, ==, "/x");
	g_assert_cmpstr(a->plugin_dir, ==, "/p");
	g_assert_cmpuint(a->tunnel_port, ==, 7000);
	config_agent_free(a);
}

static void test_agent_refused(void)
{
	const struct { const char *text, *says; } wrong[] = {
		{ "nam: x\n", ":1: unknown key 'nam' in the file; expected one of: name, group, address," },
		{ "name: x\ngroup: raft\n", ":2: 'group' is 'raft'; expected local or corosync" },
		{ "address: host1\n", ":1: address 'host1' is no IPv4 address; expected such as 10.77.0.1" },
		{ "\nrun_dir: run\n", ":2: run_dir 'run' is relative; expected an absolute path" },
		{ "user_base: 1000\n", ":1: user_base 1000 is in use or too high; expected 65536 to" },
		{ "name: x\nbackup_memory: 3\n", ":2: backup_memory '3' is not understood; expected 1M or more, such as 16G" },
		{ "backup_timeout: 0s\n", ":1: backup_timeout '0s' is not understood; expected 100ms to 600s, such as 3s" },
		{ "tunnel_port: 65536\n", ":1: 'tunnel_port' is '65536'; expected a whole number, 0 to 65535" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		g_autoptr(GError) error = NULL;
		g_assert_null(read_agent(wrong[i].text, &error));
		g_assert_nonnull(strstr(error->message, wrong[i].says));
	}
	g_autoptr(GError) error = NULL;
	g_assert_null(config_agent_read("/nonexistent/a.yaml", &error));
	g_assert_nonnull(error);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/base/config/good", test_good);
	g_test_add_func("/base/config/good-vms", test_good_vms);
	g_test_add_func("/base/config/defaults", test_defaults);
	g_test_add_func("/base/config/C1-refused", test_c1_refused);
	g_test_add_func("/base/config/C4-macs", test_c4_macs);
	g_test_add_func("/base/config/C5-files", test_c5_files);
	g_test_add_func("/base/config/Y1-bombs", test_y1_bombs);
	g_test_add_func("/base/config/too-many-vms", test_too_many_vms);
	g_test_add_func("/base/config/damaged", test_damaged);
	g_test_add_func("/base/config/agent", test_agent);
	g_test_add_func("/base/config/agent-refused", test_agent_refused);
	return g_test_run();
}
