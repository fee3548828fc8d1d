/* identity.h - the user as whom a VM's QEMU and nbdkit run, and how files get to it.
 *
 *   agent (root, few capabilities) ──fork──► identity_become() ──► exec: QEMU, nbdkit: a user of its own, no capability, none to be had
 *
 *  ID1 A child that has become an identity has its user and group as real, effective, saved and file system's, no supplementary group but `kvm`, no
 *      capability in any set, no_new_privs, and makes files for itself alone. Only then PR_SET_PDEATHSIG is set: the kernel clears it when credentials change.
 *  ID2 What is given to an identity is reached by a descriptor that was opened without following a link, and is a folder or a file with one name: in a
 *      folder of its own a process that was taken over may have put anything under any name.
 *  ID3 A file that the identity must read but may not is lent to it: a copy in memory that nobody can change any more.
 * An identity that is not `other` is ourselves: nothing is changed and nothing given away (an agent that is not root; tests). */
#ifndef VCFT_BASE_IDENTITY_H
#define VCFT_BASE_IDENTITY_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

struct identity {
	bool other;
	uid_t user;
	gid_t group;
	gid_t kvm;              /* group of /dev/kvm, 0: it has none that would help */
};

#define IDENTITY_ERROR (identity_error_quark())
GQuark identity_error_quark(void);

/* Of a user's name. For root's agents only: others get themselves. */
gboolean identity_of_user(const char *name, struct identity *ret_identity, GError **error);
/* The one with number `number`, which needs no name, and `like`'s group of /dev/kvm. */
struct identity identity_of_number(const struct identity *like, uid_t number);

/* ID1, between fork() and execve(): only calls that are safe there. death: PR_SET_PDEATHSIG, 0: none. False: errno. */
bool identity_become(const struct identity *who, int death);

/* ID2: it and its group own the file from now on. No error if there is none. */
gboolean identity_give(const struct identity *who, const char *path, GError **error);
/* Make the folder (its parents 0711) unless it is there. _own: 0700, the identity's. _closed: 0710, ours, the identity may pass through.
 * _open: 0711, ours, all may pass through. */
gboolean identity_folder_own(const struct identity *who, const char *path, GError **error);
gboolean identity_folder_closed(const struct identity *who, const char *path, GError **error);
gboolean identity_folder_open(const char *path, GError **error);

/* ID3. *ret_path: by which name the identity can read the file, *ret_fd: a descriptor that must be inherited for that under its number, -1: none. */
gboolean identity_lend(const struct identity *who, const char *path, char **ret_path, int *ret_fd, GError **error);

#endif
