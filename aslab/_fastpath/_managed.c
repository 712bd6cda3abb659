/* ManagedBuffer: in C only what caches need whose objects may move, and that ask for nothing else (`Origin.movable`).

   The methods in Python hold the guard of the pool. A shortcut does without, as each is one step, and does nothing while the
   object is `moving`: the mover sets that before it looks at the handle, and clears it when it is done (`_kmem/_move.py`).

   The slot must lead back to the handle. In Python it does by a weak reference; here by a plain pointer (`Extra.holder`), which
   ends with the claim, and becomes a weak reference as soon as somebody asks for it.

   A handle may refer to a note, and so is of a type for the garbage collector. Those of the shortcuts have none, and are
   shown to it only where those of other caches are (`_handle.c`). */

#include "_core.h"

PyObject *managed_new(Core *core, Origin *home, Slot *slot) /* takes over the slot's reference */
{
    Extra *extra = slot_extra(slot);
    Managed *managed = NULL;
    if (extra != NULL && core->n_manageds) {
        managed = core->manageds[--core->n_manageds];
        _Py_NewReference((PyObject *)managed); /* it has kept its type */
    } else if (extra != NULL) {
        managed = PyObject_GC_New(Managed, core->managed);
    }
    if (managed == NULL) {
        Py_DECREF(slot);
        return NULL;
    }
    Handle *handle = &managed->handle;
    handle->home = (Origin *)Py_NewRef((PyObject *)home);
    handle->slot = slot;
    handle->view = handle->lent = handle->weak = handle->pinned = NULL;
    managed->note = NULL;
    managed->emergency = managed->moving = managed->touched = managed->left = 0;
    extra->holder = handle;
    Py_CLEAR(extra->owner);
    if (home->seen)
        PyObject_GC_Track(managed);
    return (PyObject *)managed;
}

void managed_clear_kept(Core *core)
{
    while (core->n_manageds) {
        PyObject_GC_Del(core->manageds[--core->n_manageds]);
        Py_DECREF(core->managed);
    }
}

static int managed_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((Managed *)self)->note);
    return handle_traverse(self, visit, arg);
}

static int managed_clear(PyObject *self)
{
    Py_CLEAR(((Managed *)self)->note);
    return handle_clear(self);
}

static void managed_dealloc(PyObject *self)
{
    Managed *managed = (Managed *)self;
    Handle *handle = &managed->handle;
    PyTypeObject *type = Py_TYPE(self);
    if (handle_ends(self))
        return;
    Origin *home = handle->home;
    Core *core = home == NULL || home->magazine == NULL ? NULL : home->magazine->core;
    if (core != NULL && type == core->managed && core->n_manageds < KEPT_HANDLES && !PyObject_GC_IsFinalized(self) &&
        handle->slot == NULL && handle->view == NULL && handle->lent == NULL && handle->pinned == NULL &&
        managed->note == NULL) {
        core->manageds[core->n_manageds++] = managed;
        Py_DECREF(home);
        return;
    }
    managed_clear(self);
    if (handle->slot != NULL && handle->slot->extra != NULL && handle->slot->extra->holder == handle)
        handle->slot->extra->holder = NULL;
    Py_CLEAR(handle->slot);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *managed_free_directly(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *result = handle_free(NULL, &self);
    if (result != NULL || PyErr_Occurred())
        return result;
    Core *core = core_of(Py_TYPE(self));
    return core == NULL ? NULL : PyObject_CallOneArg(core->free_managed.python, self);
}

PyObject *managed_view(Core *core, PyObject *const *args)
{
    return Py_IS_TYPE(args[0], core->managed) && !((Managed *)args[0])->moving ? handle_view(core, args) : NULL;
}

static PyMemberDef managed_members[] = {{"_note", T_OBJECT, offsetof(Managed, note), 0, NULL},
                                        {"emergency", T_BOOL, offsetof(Managed, emergency), 0, NULL},
                                        {"moving", T_BOOL, offsetof(Managed, moving), 0, NULL},
                                        {"touched", T_BOOL, offsetof(Managed, touched), 0, NULL},
                                        {"left", T_BOOL, offsetof(Managed, left), 0, NULL},
                                        {NULL, 0, 0, 0, NULL}};
static PyType_Slot managed_slots[] = {{Py_tp_dealloc, managed_dealloc},
                                      {Py_tp_finalize, handle_finalise},
                                      {Py_tp_traverse, managed_traverse},
                                      {Py_tp_clear, managed_clear},
                                      {Py_tp_members, managed_members},
                                      {0, NULL}};
PyType_Spec managed_spec = {"aslab._fastpath._core.ManagedBuffer", sizeof(Managed), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, managed_slots};
