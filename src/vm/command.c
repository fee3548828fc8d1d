/* command.c - the command line and environment of QEMU: a pure function of the spec.
 *
 * C1 The same spec gives the same devices in the same order, at power-on and when a state is loaded: a device state fits only then.
 * C2 Nothing of the machine's own configuration counts (-no-user-config, -nodefaults).
 * C3 An I/O error stops the VM (werror, rerror): a guest never sees the end of its disk server, it is recovered instead.
 * C4 QEMU's sandbox is on as far as it goes: no program is started, no right gained, no priority changed, no call made that nobody needs. A
 *    device in `qemu:` that needs one of these (a helper program) does not work.
 * C5 A guest that powers itself off, or panics, stands still in its QEMU, which goes on: to be captured like any other state. Said behind the
 *    user's own arguments: a QEMU that ended would be taken for a loss, and be brought back to meet the same end again. A reset goes on.
 * send-configuration=off and suppress-vmdesc make the file of xen-save-devices-state and an incoming migration the same format. */
#include "vm/preload/preload.h"
#include "vm/vm-private.h"

#include <stdarg.h>
#include <string.h>

char *vm_qemu_path(void)
{
	static const char *const usual[] = { "qemu-system-x86_64", "/usr/libexec/qemu-kvm" };
	const char *chosen = g_getenv("VIRTCFT_QEMU");
	if (chosen && *chosen)
		return g_find_program_in_path(chosen);
	char *path = NULL;
	for (size_t i = 0; i < G_N_ELEMENTS(usual) && !path; i++)
		path = g_find_program_in_path(usual[i]);
	return path;
}

/* A value inside a comma list: commas are doubled. */
static char *quoted(const char *value)
{
	g_auto(GStrv) parts = g_strsplit(value, ",", -1);
	return g_strjoinv(",,", parts);
}

static void add(GPtrArray *argv, const char *option, const char *format, ...) G_GNUC_PRINTF(3, 4);
static void add(GPtrArray *argv, const char *option, const char *format, ...)
{
	g_ptr_array_add(argv, g_strdup(option));
	if (!format)
		return;
	va_list list;
	va_start(list, format);
	g_ptr_array_add(argv, g_strdup_vprintf(format, list));
	va_end(list);
}

static void add_machine(GPtrArray *argv, const struct vm_spec *spec, const char *accel)
{
	g_autofree char *ram = quoted(spec->ram_path), *name = quoted(spec->name);
	add(argv, "-no-user-config", NULL);
	add(argv, "-nodefaults", NULL);
	add(argv, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	add(argv, "-display", "none");
	add(argv, "-S", NULL);
	add(argv, "-name", "%s", name);
	add(argv, "-machine", "%s,accel=%s,memory-backend=ram0,suppress-vmdesc=on", spec->machine ? spec->machine : "pc", accel);
	add(argv, "-object", "memory-backend-file,id=ram0,mem-path=%s,size=%" G_GUINT64_FORMAT ",share=on", ram, (guint64)spec->memory_bytes);
	add(argv, "-global", "migration.send-configuration=off");
	add(argv, "-cpu", "%s", spec->cpu ? spec->cpu : "qemu64");
	add(argv, "-smp", "%u", spec->cpus ? spec->cpus : 1);
	add(argv, "-m", "%" G_GUINT64_FORMAT "B", (guint64)spec->memory_bytes);
}

static void add_boot(GPtrArray *argv, const struct vm_spec *spec)
{
	if (spec->kernel)
		add(argv, "-kernel", "%s", spec->kernel);
	if (spec->kernel && spec->initrd)
		add(argv, "-initrd", "%s", spec->initrd);
	if (spec->kernel && spec->append)
		add(argv, "-append", "%s", spec->append);
}

static void add_console(GPtrArray *argv, const struct vm_spec *spec)
{
	g_autofree char *path = spec->console_socket ? quoted(spec->console_socket) : NULL;
	g_autofree char *log = spec->console_log ? quoted(spec->console_log) : NULL;
	g_autofree char *keep = log ? g_strdup_printf(",logfile=%s,logappend=on", log) : g_strdup("");
	if (path)
		add(argv, "-chardev", "socket,id=con0,path=%s,server=on,wait=off%s", path, keep);
	else
		add(argv, "-chardev", "null,id=con0%s", keep);
	add(argv, "-serial", "chardev:con0");
}

static void add_nic(GPtrArray *argv, unsigned i, const struct vm_nic *nic, int fd)
{
	const uint8_t *m = nic->mac;
	add(argv, "-netdev", "stream,id=n%u,server=off,addr.type=fd,addr.str=%d", i, fd);
	add(argv, "-device", "virtio-net-pci,id=nic%u,netdev=n%u,romfile=,mac=%02x:%02x:%02x:%02x:%02x:%02x", i, i, m[0], m[1], m[2], m[3], m[4], m[5]);
}

static void add_disk(GPtrArray *argv, unsigned i, const struct vm_disk *disk)
{
	g_autofree char *path = quoted(disk->socket);
	add(argv, "-blockdev", "driver=nbd,node-name=d%u,server.type=unix,server.path=%s,cache.no-flush=on,cache.direct=on,discard=unmap", i, path);
	add(argv, "-device", "virtio-blk-pci,id=disk%u,drive=d%u,werror=stop,rerror=stop,bootindex=%u", i, i, i + 1);
}

char **vm_command_line(const struct vm_spec *spec, const char *qemu, const char *accel, const struct vm_inherit *fds, bool incoming)
{
	GPtrArray *argv = g_ptr_array_new();
	g_ptr_array_add(argv, g_strdup(qemu));
	add_machine(argv, spec, accel);
	add_boot(argv, spec);
	add(argv, "-chardev", "socket,id=qmp0,fd=%d", fds->qmp);
	add(argv, "-mon", "chardev=qmp0,mode=control");
	add_console(argv, spec);
	for (unsigned i = 0; i < spec->nic_count; i++)
		add_nic(argv, i, &spec->nics[i], fds->nic[i]);
	for (unsigned i = 0; i < spec->disk_count; i++)
		add_disk(argv, i, &spec->disks[i]);
	for (const char *const *extra = spec->extra; extra && *extra; extra++)
		g_ptr_array_add(argv, g_strdup(*extra));
	add(argv, "-action", "shutdown=pause,panic=pause");
	if (incoming)
		add(argv, "-incoming", "defer");
	g_ptr_array_add(argv, NULL);
	return (char **)g_ptr_array_free(argv, FALSE);
}

char **vm_environment(const struct vm_spec *spec, const struct vm_inherit *fds)
{
	char **env = g_get_environ();
	if (fds->tell < 0)
		return env;
	g_autofree char *tell = g_strdup_printf("%d", fds->tell), *faults = g_strdup_printf("%d", fds->faults);
	env = g_environ_setenv(env, "LD_PRELOAD", spec->preload, TRUE);
	env = g_environ_setenv(env, PRELOAD_RAM, spec->ram_path, TRUE);
	env = g_environ_setenv(env, PRELOAD_FAULTS, faults, TRUE);
	return g_environ_setenv(env, PRELOAD_TELL, tell, TRUE);
}

bool vm_gives_memory_back(const struct vm_spec *spec)
{
	for (const char *const *extra = spec->extra; extra && *extra; extra++)
		if (strstr(*extra, "balloon") || strstr(*extra, "virtio-mem"))
			return true;
	return false;
}
