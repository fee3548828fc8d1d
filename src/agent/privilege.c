/* privilege.c - see privilege.h.
 *
 *  PV1 No thread or child of the agent has a capability that is not in the table below, or can get one.
 * Each was left out once, and tests/lab/test_privilege.py, test_local.py and two losses of test_loss.py were run: beside it stands what it is for, and what
 * failed. Two were not missed by anything and are gone: CAP_FOWNER (a folder's mode is set by who owns it: base/identity.c takes it first) and
 * CAP_CHECKPOINT_RESTORE (the holes of live RAM: asked for only when there was no memory for a list of pages, and then all can be compared). */
#include "agent/privilege.h"

#include <errno.h>
#include <gio/gio.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned needed[] = {
	CAP_NET_ADMIN,            /* TAP devices: `up` of a network with an uplink fails; send buffers of the switch */
	CAP_SETUID, CAP_SETGID,   /* children become the VMs' user (identity_become): `up` fails, nbdkit does not start */
	CAP_SETPCAP,              /* and lose the bounding set: as above */
	CAP_CHOWN,                /* files are given to that user, and taken back; the control socket to its group: the agent does not start */
	CAP_DAC_OVERRIDE,         /* its files are read and removed, users' images read wherever they are: `up` fails, its folder is closed to root */
	CAP_KILL,                 /* its processes are killed: a recovery in place never ends */
	CAP_SYS_PTRACE,           /* /proc/PID/pagemap of QEMU: all works, by comparing all pages at every checkpoint */
	CAP_SYS_NICE,             /* the switch goes before vCPUs that never sleep: all works, but it does not */
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
