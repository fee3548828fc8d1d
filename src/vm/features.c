/* features.c - what this host can do, found out by doing it: for `virtcft check`. Any thread; leaves nothing behind. */
#include "vm/vm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define RAM_DIR "/dev/shm"
#define RAM_LEAST (UINT64_C(256) << 20)   /* bytes: less holds no useful VM */

static void say(struct vm_feature *f, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void say(struct vm_feature *f, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	g_vsnprintf(f->detail, sizeof f->detail, format, list);
	va_end(list);
}

/* The first line that a program prints; NULL: it could not be run. */
static char *first_line(char *const *argv)
{
	char *text = NULL;
	int status = -1;
	if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &text, NULL, &status, NULL) ||
	    status != 0)
		g_clear_pointer(&text, g_free);
	if (text)
		text[strcspn(text, "\n")] = 0;
	return text;
}

static void program(struct vm_feature *f, const char *path, const char *missing)
{
	char *const argv[] = { (char *)path, "--version", NULL };
	g_autofree char *line = path ? first_line(argv) : NULL;
	f->found = line != NULL;
	say(f, "%s", line ? line : missing);
}

static void find_qemu(struct vm_feature *f)
{
	g_autofree char *path = vm_qemu_path();
	program(f, path, "qemu-system-x86_64 is not installed (7.2 or newer)");
}

static void find_nbdkit(struct vm_feature *f)
{
	program(f, "nbdkit", "nbdkit is not installed");
}

static void find_kvm(struct vm_feature *f)
{
	const char *failed = vm_kvm_failed();
	say(f, "%s", failed ? failed : "/dev/kvm runs virtual CPUs");
	f->found = !failed;
}

static void find_uffd(struct vm_feature *f) { f->found = track_uffd_probe(f->detail, sizeof f->detail); }
static void find_pagemap(struct vm_feature *f) { f->found = track_pagemap_probe(f->detail, sizeof f->detail); }

static void find_tun(struct vm_feature *f)
{
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	f->found = fd >= 0 && ioctl(fd, TUNSETIFF, &request) == 0;
	if (f->found)
		say(f, "/dev/net/tun makes TAP devices");
	else
		say(f, "/dev/net/tun: %s", g_strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void find_ram(struct vm_feature *f)
{
	struct statvfs v;
	uint64_t bytes = statvfs(RAM_DIR, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : 0;
	f->found = bytes >= RAM_LEAST;
	say(f, "%s has %" G_GUINT64_FORMAT " MiB free", RAM_DIR, (guint64)(bytes >> 20));
}

static const struct { const char *name, *instead; void (*find)(struct vm_feature *f); } probes[] = {
	{ "qemu", NULL, find_qemu },
	{ "kvm", "tcg: QEMU interprets, some ten times slower", find_kvm },
	{ "userfaultfd", "compare: RAM is kept twice and compared at each checkpoint", find_uffd },
	{ "pagemap-scan", "compare: RAM is kept twice and compared at each checkpoint", find_pagemap },
	{ "ram-tmpfs", NULL, find_ram },
	{ "nbdkit", "VMs without disks only", find_nbdkit },
	{ "tun", "networks without an uplink only", find_tun },
};

size_t vm_features(struct vm_feature *out, size_t room)
{
	size_t n = MIN(room, G_N_ELEMENTS(probes));
	for (size_t i = 0; i < n; i++) {
		out[i] = (struct vm_feature){ .name = probes[i].name, .instead = probes[i].instead };
		probes[i].find(&out[i]);
	}
	return n;
}
