/* features.c - what this host can do, found out by doing it: for `virtcft check` and the agent's start. Any thread; leaves nothing behind. */
#include "vm/vm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/magic.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

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

static void find_qemu(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	g_autofree char *path = vm_qemu_path();
	program(f, path, "qemu-system-x86_64 is not installed (7.2 or newer)");
}

static void find_nbdkit(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	program(f, "nbdkit", "nbdkit is not installed");
}

static void find_qemu_img(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	program(f, "qemu-img", "qemu-img is not installed");
}

/* Loaded as for a disk, to say what it is. */
static void find_plugin(const struct vm_folders *at, struct vm_feature *f)
{
	g_autofree char *path = g_build_filename(at->plugin_dir, "virtcft-disk.so", NULL);
	char *const argv[] = { (char *)"nbdkit", path, (char *)"--dump-plugin", NULL };
	g_autofree char *line = first_line(argv);
	f->found = line != NULL;
	say(f, "%s%s", path, f->found ? "" : access(path, R_OK) < 0 ? ": cannot be read" : ": nbdkit does not load it");
}

static void find_kvm(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	const char *failed = vm_kvm_failed();
	say(f, "%s", failed ? failed : "/dev/kvm runs virtual CPUs");
	f->found = !failed;
}

static void find_uffd(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	f->found = track_uffd_probe(f->detail, sizeof f->detail);
}

static void find_pagemap(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	f->found = track_pagemap_probe(f->detail, sizeof f->detail);
}

static void find_missing(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
	f->found = track_missing_probe(f->detail, sizeof f->detail);
}

/* QEMU loads it; whether it can is known when a VM starts. */
static void find_preload(const struct vm_folders *at, struct vm_feature *f)
{
	g_autofree char *path = g_build_filename(at->plugin_dir, "virtcft-preload.so", NULL);
	f->found = access(path, R_OK) == 0;
	say(f, "%s%s%s", path, f->found ? "" : ": ", f->found ? "" : g_strerror(errno));
}

static void find_tun(const struct vm_folders *at, struct vm_feature *f)
{
	(void)at;
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

/* Of the folder, or of the nearest one above it that is there. */
static bool file_system_of(const char *path, struct statfs *ret)
{
	g_autofree char *at = g_strdup(path);
	while (statfs(at, ret) != 0) {
		g_autofree char *above = g_path_get_dirname(at);
		if (errno != ENOENT || !strcmp(above, at))
			return false;
		g_free(at);
		at = g_steal_pointer(&above);
	}
	return true;
}

gboolean vm_ram_dir_fits(const char *ram_dir, GError **error)
{
	struct statfs fs;
	struct stat st;
	if (!file_system_of(ram_dir, &fs)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "ram_dir %s: %s", ram_dir, g_strerror(errno));
	} else if (fs.f_type != TMPFS_MAGIC) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "ram_dir %s is on no tmpfs; expected a folder such as /dev/shm/virtcft", ram_dir);
	} else if (lstat(ram_dir, &st) == 0 && (!S_ISDIR(st.st_mode) || (st.st_mode & (S_IWGRP | S_IWOTH)))) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "ram_dir %s is not for the agent alone, others may write there; expected a folder such as %s/virtcft", ram_dir,
		            ram_dir);
	} else
		return TRUE;
	return FALSE;
}

static void find_ram(const struct vm_folders *at, struct vm_feature *f)
{
	g_autoptr(GError) error = NULL;
	struct statfs fs;
	uint64_t bytes = file_system_of(at->ram_dir, &fs) ? (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize : 0;
	f->found = vm_ram_dir_fits(at->ram_dir, &error) && bytes >= RAM_LEAST;
	if (error)
		say(f, "%s", error->message);
	else
		say(f, "%s has %" G_GUINT64_FORMAT " MiB free, %" G_GUINT64_FORMAT " are the least", at->ram_dir, (guint64)(bytes >> 20), (guint64)(RAM_LEAST >> 20));
}

static const struct { const char *name, *instead; void (*find)(const struct vm_folders *at, struct vm_feature *f); } probes[] = {
	{ "qemu", NULL, find_qemu },
	{ "kvm", "tcg: QEMU interprets, some ten times slower", find_kvm },
	{ "userfaultfd", "compare: RAM is kept twice and compared at each checkpoint", find_uffd },
	{ "pagemap-scan", "compare: RAM is kept twice and compared at each checkpoint", find_pagemap },
	{ "userfaultfd-missing", "a recovered VM runs when all of its memory has been copied", find_missing },
	{ "preload", "compare: RAM is kept twice and compared at each checkpoint", find_preload },
	{ "ram-tmpfs", NULL, find_ram },
	{ "nbdkit", "VMs without disks only", find_nbdkit },
	{ "disk-plugin", "VMs without disks only", find_plugin },
	{ "qemu-img", "VMs without disks only", find_qemu_img },
	{ "tun", "networks without an uplink only", find_tun },
};

_Static_assert(G_N_ELEMENTS(probes) <= VM_FEATURES_MAX, "the callers' room");

size_t vm_features(const struct vm_folders *at, struct vm_feature *out, size_t room)
{
	size_t n = MIN(room, G_N_ELEMENTS(probes));
	for (size_t i = 0; i < n; i++) {
		out[i] = (struct vm_feature){ .name = probes[i].name, .instead = probes[i].instead };
		probes[i].find(at, &out[i]);
	}
	return n;
}

char *vm_second_choices(const struct vm *vm)
{
	const char *no_kvm = vm_kvm_failed(), *tracker = vm->tracker->ops->name;
	GString *s = g_string_new(NULL);
	if (strcmp(tracker, "uffd"))
		g_string_append_printf(s, "tracker %s (%s)", tracker, vm->fell_back ? vm->fell_back : "the kernel's cannot be used with this host or VM");
	if (!vm->kvm)
		g_string_append_printf(s, "%saccelerator tcg (%s)", s->len ? ", " : "", no_kvm ? no_kvm : "QEMU could not use KVM");
	if (vm->method == VM_THREE_COMMANDS)
		g_string_append_printf(s, "%scapture by three commands (the FIFO cannot be used)", s->len ? ", " : "");
	return g_string_free(s, s->len == 0);
}
