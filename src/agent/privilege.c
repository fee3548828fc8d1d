/* privilege.c - see privilege.h.
 *
 *  PV1 No thread or child of the agent has a capability that is not in the table below, or can get one.
 * The table is what the comments beside it say; the lab tests run with it. That none can be spared was not tried one by one. */
#include "agent/privilege.h"

#include <errno.h>
#include <gio/gio.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif

static const unsigned needed[] = {
	CAP_NET_ADMIN,            /* TAP devices; send buffers of the switch */
	CAP_SETUID, CAP_SETGID,   /* children become the VMs' user (identity_become) */
	CAP_SETPCAP,              /* and lose the bounding set */
	CAP_CHOWN, CAP_FOWNER,    /* files and folders are given to that user, and taken back */
	CAP_DAC_OVERRIDE,         /* its files are read and removed; users' images are read, wherever they are */
	CAP_KILL,                 /* its processes are killed */
	CAP_SYS_PTRACE,           /* /proc/PID/pagemap of QEMU: written pages */
	CAP_CHECKPOINT_RESTORE,   /* /proc/self/map_files: holes of RAM, at a rollback; without: all pages are compared */
	CAP_SYS_NICE,             /* the switch goes before vCPUs that never sleep; without: it does not */
};

static guint64 needed_mask(void)
{
	guint64 mask = 0;
	for (gsize i = 0; i < G_N_ELEMENTS(needed); i++)
		mask |= G_GUINT64_CONSTANT(1) << needed[i];
	return mask;
}

static gboolean reduce(guint64 mask)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct set[_LINUX_CAPABILITY_U32S_3];
	for (unsigned c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		if (!(mask >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			return FALSE;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capget, &header, set) < 0)
		return FALSE;
	for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		set[i].permitted &= (guint32)(mask >> 32 * i); /* what a container has taken away already is done without */
		set[i].effective = set[i].permitted;
		set[i].inheritable = 0;
	}
	return syscall(SYS_capset, &header, set) == 0;
}

gboolean privilege_reduce(GError **error)
{
	if (geteuid() != 0 || reduce(needed_mask()))
		return TRUE;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "capabilities cannot be given up: %s", g_strerror(errno));
	return FALSE;
}
