/* identity.c - see identity.h. System calls are made directly where the C library's functions would change all threads, or take locks. */
#include "base/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <signal.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

G_DEFINE_QUARK(identity-error-quark, identity_error)

static gboolean fail(GError **error, const char *what, const char *path)
{
	g_set_error(error, IDENTITY_ERROR, 0, "%s: %s: %s", path, what, g_strerror(errno));
	return FALSE;
}

/* ---- who ---- */

static gid_t kvm_group(void)
{
	struct stat st;
	return stat("/dev/kvm", &st) == 0 && (st.st_mode & 0060) == 0060 ? st.st_gid : 0;
}

gboolean identity_of_user(const char *name, struct identity *ret_identity, GError **error)
{
	char buffer[4096];
	struct passwd entry, *found = NULL;
	*ret_identity = (struct identity){ .user = geteuid(), .group = getegid() };
	if (geteuid() != 0)
		return TRUE;
	if (getpwnam_r(name, &entry, buffer, sizeof buffer, &found) != 0 || !found) {
		g_set_error(error, IDENTITY_ERROR, 0, "there is no user '%s' for QEMU and nbdkit to run as; `useradd --system %s` makes it, or name another by user:",
		            name, name);
		return FALSE;
	}
	if (found->pw_uid == 0) {
		g_set_error(error, IDENTITY_ERROR, 0, "user '%s' is root; QEMU and nbdkit run as a user without rights", name);
		return FALSE;
	}
	*ret_identity = (struct identity){ .other = true, .user = found->pw_uid, .group = found->pw_gid, .kvm = kvm_group() };
	return TRUE;
}

struct identity identity_of_number(const struct identity *like, uid_t number)
{
	return like->other ? (struct identity){ .other = true, .user = number, .group = number, .kvm = like->kvm } : *like;
}

/* None may come back, not even by a program that is root's and setuid. */
static bool bound_capabilities(void)
{
	for (unsigned long c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			return false;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

static bool drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };
	return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0 && syscall(SYS_capset, &header, none) == 0;
}

static bool change_user(const struct identity *who)
{
	return syscall(SYS_setgroups, who->kvm ? 1 : 0, &who->kvm) == 0 && syscall(SYS_setresgid, who->group, who->group, who->group) == 0 &&
	       syscall(SYS_setresuid, who->user, who->user, who->user) == 0;
}

bool identity_become(const struct identity *who, int death)
{
	/* The order: what is done first is what the capabilities that go with the user's change are needed for. */
	if (who->other && !(bound_capabilities() && change_user(who) && drop_capabilities()))
		return false;
	if (who->other)
		umask(077);
	return !death || prctl(PR_SET_PDEATHSIG, death, 0, 0, 0) == 0;
}

/* ---- giving ---- */

static gboolean give_fd(const struct identity *who, int fd, const char *path, GError **error)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return fail(error, "cannot be examined", path);
	if (!S_ISDIR(st.st_mode) && (S_ISLNK(st.st_mode) || st.st_nlink != 1)) {
		g_set_error(error, IDENTITY_ERROR, 0, "%s: is a link, or has several names; it is not given to another user", path);
		return FALSE;
	}
	if ((st.st_uid == who->user && st.st_gid == who->group) || fchownat(fd, "", who->user, who->group, AT_EMPTY_PATH) == 0)
		return TRUE;
	return fail(error, "cannot be given to the VMs' user", path);
}

gboolean identity_give(const struct identity *who, const char *path, GError **error)
{
	int fd = who->other ? open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1;
	if (fd < 0)
		return !who->other || errno == ENOENT || fail(error, "cannot be given to the VMs' user", path);
	gboolean ok = give_fd(who, fd, path, error);
	close(fd);
	return ok;
}

/* The folder's owner may have changed its mode. Only an owner may change it back: so it is taken first, and given away again behind this. */
static bool set_mode(int fd, struct stat *st, mode_t mode)
{
	return (st->st_mode & 07777) == mode || (fchown(fd, geteuid(), getegid()) == 0 && fchmod(fd, mode) == 0 && fstat(fd, st) == 0);
}

static gboolean folder(const char *path, uid_t user, gid_t group, mode_t mode, GError **error)
{
	g_autofree char *parent = g_path_get_dirname(path);
	struct stat st;
	if (g_mkdir_with_parents(parent, 0711) < 0 || (mkdir(path, mode) < 0 && errno != EEXIST))
		return fail(error, "cannot be made", path);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	gboolean ok = fd >= 0 && fstat(fd, &st) == 0 && set_mode(fd, &st, mode) &&
	              ((st.st_uid == user && st.st_gid == group) || fchown(fd, user, group) == 0);
	if (!ok)
		fail(error, "cannot be made a folder of its user", path);
	if (fd >= 0)
		close(fd);
	return ok;
}

gboolean identity_folder_own(const struct identity *who, const char *path, GError **error)
{
	return folder(path, who->other ? who->user : geteuid(), who->other ? who->group : getegid(), 0700, error);
}

gboolean identity_folder_closed(const struct identity *who, const char *path, GError **error)
{
	return folder(path, geteuid(), who->other ? who->group : getegid(), who->other ? 0710 : 0700, error);
}

gboolean identity_folder_open(const char *path, GError **error) { return folder(path, geteuid(), getegid(), 0711, error); }

/* ---- lending ---- */

/* As the identity sees it: the file system's user and group are the thread's alone, and root's rights over files go with them. */
static bool can_read(const struct identity *who, const char *path)
{
	gid_t group = (gid_t)setfsgid(who->group);
	uid_t user = (uid_t)setfsuid(who->user);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	setfsuid(user);
	setfsgid(group);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static bool copy(int from, int to)
{
	ssize_t n;
	while ((n = sendfile(to, from, NULL, 1u << 30)) > 0)
		;
	return n == 0 && fcntl(to, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) == 0;
}

gboolean identity_lend(const struct identity *who, const char *path, char **ret_path, int *ret_fd, GError **error)
{
	*ret_fd = -1;
	if (!who->other || can_read(who, path)) {
		*ret_path = g_strdup(path);
		return TRUE;
	}
	int from = open(path, O_RDONLY | O_CLOEXEC), to = from < 0 ? -1 : memfd_create("virtcft-lent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (from < 0 || to < 0 || !copy(from, to)) {
		g_set_error(error, IDENTITY_ERROR, 0, "%s: cannot be read by user %u, nor lent to it: %s", path, (unsigned)who->user, g_strerror(errno));
		if (to >= 0)
			close(to);
		to = -1;
	}
	if (from >= 0)
		close(from);
	if (to < 0)
		return FALSE;
	*ret_path = g_strdup_printf("/proc/self/fd/%d", to);
	*ret_fd = to;
	return TRUE;
}
